"""Builds fastcsm's libraries, or installs pure Python where they cannot be built.

FASTCSM_BUILD chooses: unset or "auto" builds the CPU library when a C++ compiler and torch are there, and the
CUDA library when nvcc is there too; "cpu" insists on the first alone, "cuda" on both, "python" installs none.
What was done, and why, is recorded in fastcsm/_build.json for `fastcsm info`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from importlib import metadata
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools import __version__ as setuptools_version
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
TORCH_MINIMUM = (2, 11)
TORCH_TARGET = "0x020b000000000000"
COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
]
LINK_FLAGS = ["-Wl,--as-needed", "-Wl,--no-undefined", "-Wl,-s"] if sys.platform == "linux" else []
NVCC_MINIMUM = (12, 1)  # arguments of a kernel may be over 4 KiB
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-prec-div=false",
    "--threads=2",
    "--expt-relaxed-constexpr",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden",
    "-DUSE_CUDA",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
]


def find_compiler() -> str | None:
    """The C++ compiler's command: CXX when set, else the first of c++, g++, clang++ on PATH."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for command in candidates:
        if shutil.which(shlex.split(command)[0]):
            return command
    return None


def compiler_version(command: str) -> str:
    """First line of `compiler --version`, without directories."""
    result = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    return lines[0].strip() if lines else os.path.basename(command)


def torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def torch_is_old(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < TORCH_MINIMUM


def why_not() -> tuple[str, bool]:
    """Why the CPU library is not compiled here ("" if it is), and whether installing torch would help."""
    if sys.platform == "win32":
        return "the CPU library is not built on Windows", False
    if not (ROOT / "csrc" / "library_cpu.cpp").exists():
        return "csrc/library_cpu.cpp is not in this source tree", False
    if find_compiler() is None:
        wanted = os.environ.get("CXX") or "c++, g++ or clang++"
        return f"no C++ compiler was found ({wanted}); install one and reinstall fastcsm", False
    version = torch_version()
    if version is None:
        return "torch was not installed at build time; install torch and ninja, then reinstall fastcsm", True
    if torch_is_old(version):
        return f"torch {version} was found at build time and 2.11 or newer is needed", True
    return "", False


def find_nvcc() -> str | None:
    """Path of nvcc: on PATH, or in CUDA_HOME."""
    folder = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{folder}/bin") if folder else None)


def nvcc_version(nvcc: str) -> str:
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+\.\d+)", result.stdout)
    return found[1] if found else "0.0"


def why_not_cuda() -> str:
    """Why the CUDA library is not compiled here ("" if it is), where the CPU library is."""
    nvcc = find_nvcc()
    if sys.platform != "linux" or nvcc is None:
        return "nvcc was not found; install the CUDA toolkit and reinstall fastcsm"
    version = nvcc_version(nvcc)
    if tuple(map(int, version.split("."))) < NVCC_MINIMUM:
        return f"nvcc {version} was found and 12.1 or newer is needed"
    return ""


if int(setuptools_version.partition(".")[0]) < 77:
    sys.exit(
        f"fastcsm needs setuptools >= 77 to build, {setuptools_version} found: "
        "pip install -U setuptools wheel ninja"
    )

requested = os.environ.get("FASTCSM_BUILD", "").strip().lower() or "auto"
if requested not in ("auto", "cpu", "cuda", "python"):
    sys.exit(f"FASTCSM_BUILD={requested}: expected auto, cpu, cuda or python.")

if requested == "python":
    reason, installable = "FASTCSM_BUILD=python was set at installation; unset it and reinstall", False
else:
    reason, installable = why_not()
asks_requirements = "egg_info" in sys.argv
if requested in ("cpu", "cuda") and reason and not (installable and asks_requirements):
    sys.exit(f"FASTCSM_BUILD={requested}: {reason}.")
if requested in ("cpu", "python"):
    no_cuda = f"FASTCSM_BUILD={requested} was set at installation; unset it and reinstall"
else:
    no_cuda = reason or why_not_cuda()
if requested == "cuda" and no_cuda and not reason:
    sys.exit(f"FASTCSM_BUILD=cuda: {no_cuda}.")

# Under each library's name why it was not built, "" if it was.
record: dict[str, str] = {"cpu": reason, "cuda": no_cuda}
if not reason:
    record["torch"] = torch_version() or ""
    record["compiler"] = compiler_version(find_compiler() or "")
if not no_cuda:
    record["nvcc"] = nvcc_version(find_nvcc() or "")


class BuildPython(build_py):
    """Copies the Python files and writes the build record beside them."""

    def _record(self) -> Path:
        return Path(
            "fastcsm" if self.editable_mode else os.path.join(self.build_lib, "fastcsm"), "_build.json"
        )

    def write_record(self) -> None:
        """Writes the record, and removes the libraries of an earlier build that it says are not there."""
        path = self._record()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for name in ("cpu", "cuda"):
            for stale in path.parent.glob(f"_{name}*.so") if record[name] else ():
                stale.unlink()

    def run(self) -> None:
        super().run()
        self.write_record()
        if reason:
            print(f"fastcsm: pure-Python install, no CPU library: {reason}.", file=sys.stderr)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(self._record())]


def sources(pattern: str) -> list[str]:
    """Files under csrc/ as the build names them, in a fixed order."""
    return sorted(f"csrc/{name}" for name in glob(pattern, root_dir=ROOT / "csrc"))


def build_cuda(target: Path, includes: list[str], libraries: list[str]) -> None:
    """Compile the CUDA library with nvcc; of torch only libtorch_cpu is linked, so that any torch will do.

    What did not change since the last build is not compiled again.

    Raises:
        CompileError: if nvcc fails.
    """
    nvcc, folder = find_nvcc() or "", ROOT / "build" / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*ROOT.glob("csrc/common/*.h"), *ROOT.glob("csrc/cuda/*.h"), ROOT / "setup.py"]
    newest = max(path.stat().st_mtime for path in headers)
    paths = [
        f"-Xcompiler=-ffile-prefix-map={includes[0]}{os.sep}=",
        *(f"-isystem={path}" for path in includes),
    ]
    objects, commands = [], []
    for source in [*sources("cuda/*.cu"), "csrc/library_cuda.cpp", *sources("common/*.cpp")]:
        path = folder / (source.replace("/", "_") + ".o")
        objects.append(str(path))
        if not path.exists() or path.stat().st_mtime < max(newest, (ROOT / source).stat().st_mtime):
            commands.append([nvcc, *NVCC_FLAGS, "-Icsrc", *paths, "-c", source, "-o", str(path)])
    target.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart=static", *objects, *(f"-L{path}" for path in libraries), "-ltorch_cpu"]
    link += ["-Xlinker=--no-undefined,--as-needed,-s", "-o", str(target)]
    run = partial(subprocess.run, check=True, cwd=ROOT)
    try:
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(run, commands))
        run(link)
    except subprocess.CalledProcessError as error:
        raise CompileError(f"nvcc could not build the CUDA library: {error}") from None


def library_arguments() -> dict:
    """setup() arguments that compile csrc/ into fastcsm/_cpu.abi3.so with torch's ninja build."""
    os.environ["CXX"] = find_compiler() or ""  # one compiler for objects and link
    from torch.utils.cpp_extension import (
        BuildExtension,
        CppExtension,
        include_paths,
        library_paths,
    )

    class BuildLibrary(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = os.path.join("build", "cpu")  # kept, so that ninja recompiles only what changed

        def build_extension(self, extension: Extension) -> None:
            if extension.name != "fastcsm._cuda":
                return super().build_extension(extension)
            target = Path(self.get_ext_fullpath(extension.name)).absolute()
            try:
                build_cuda(target, include_paths(), library_paths())
            except CompileError:
                record["cuda"] = "nvcc could not compile it; the output of the installation says why"
                self.get_finalized_command("build_py").write_record()
                raise

    library = CppExtension(
        "fastcsm._cpu",
        ["csrc/library_cpu.cpp", *sources("common/*.cpp"), *sources("cpu/*.cpp")],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[*COMPILE_FLAGS, f"-ffile-prefix-map={include_paths()[0]}{os.sep}="],
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    # Without it all else works, so that only who insists on it is stopped by an nvcc that fails.
    optional = requested != "cuda"
    cuda = Extension("fastcsm._cuda", ["csrc/library_cuda.cpp"], py_limited_api=True, optional=optional)
    return {
        "ext_modules": [library] if no_cuda else [library, cuda],
        "cmdclass": {"build_py": BuildPython, "build_ext": BuildLibrary},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


arguments: dict = {"cmdclass": {"build_py": BuildPython}}
if not reason:
    arguments = library_arguments()
if not reason or installable:
    arguments["setup_requires"] = ["torch>=2.11", "ninja>=1.11"]

# Rooms beside fastcsm/ that are installed in it; of bench/ not the experiments, the machine and the results.
bench = ["fastcsm.bench", *(f"fastcsm.bench.{name}" for name in ("harness", "baselines", "micro"))]
kernels = ["fastcsm.kernels", *(f"fastcsm.kernels.{name}" for name in find_packages("kernels"))]
setup(
    packages=[
        *find_packages(include=["fastcsm", "fastcsm.*"], exclude=["fastcsm.bench*", "fastcsm.kernels*"]),
        *(kernels if Path("kernels").is_dir() else []),
        *(bench if Path("bench").is_dir() else []),
    ],
    package_dir={"fastcsm.bench": "bench", "fastcsm.kernels": "kernels"},
    package_data={"fastcsm": ["py.typed"], "fastcsm.backends": ["measured.json"]},
    include_package_data=False,
    **arguments,
)
