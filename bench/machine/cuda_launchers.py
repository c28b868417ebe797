"""CUDA C++ on the machine: csrc/cuda's compiled kernels, launched by its own compiled launch code.

The objects that the installation left in build/cuda/ are linked with a stand-in for the CUDA runtime
(runtime/cudart.cpp), whose launches come here with the kernel's name, its grid and its arguments byte for
byte. Only library_cuda.cpp is compiled again, so that the ops, as ``torch.ops.fastcsm_emulation``, take
tensors of the host. For sm_90 the PTX that runs is that of the objects; for sm_80, for which they have
machine code alone, nvcc compiles it.

The device has three multiprocessors, so that each block has several tiles even of few rows, and the shared
memory of its architecture. Kernels may touch the arguments of the running op and what it allocated, nothing
else.
"""

import ast
import ctypes
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.cpp_extension import include_paths, library_paths

from fastcsm import backends

from . import host

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "build" / "cuda"
FOLDER = ROOT / "build" / "machine"
RUNTIME = Path(__file__).parent / "runtime"
MULTIPROCESSORS = 3
LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure
Callback = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)


def find_nvcc() -> str | None:
    folder = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{folder}/bin") if folder else None)


def sources() -> list[Path]:
    """The files of csrc/cuda/ that have kernels."""
    return [path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if path.name != "launch.cu"]


def headers() -> list[Path]:
    return [path for part in ("common", "cuda") for path in sorted((ROOT / "csrc" / part).glob("*.h"))]


def object_of(source: Path) -> Path:
    """What the installation made of a source."""
    return OBJECTS / f"{'_'.join(source.relative_to(ROOT).parts)}.o"


def objects() -> list[Path]:
    """The installation's objects, but the one whose registrations are for tensors of a GPU."""
    found = [*(ROOT / "csrc" / "cuda").glob("*.cu"), *(ROOT / "csrc" / "common").glob("*.cpp")]
    return list(map(object_of, sorted(found)))


def why_not() -> str:
    """Why nothing can be built here; "" if it can."""
    if sys.platform != "linux" or find_nvcc() is None:
        return "needs Linux and nvcc"
    if host.cuobjdump() is None:
        return "needs cuobjdump, which is in the package triton"
    missing = [path.name for path in objects() if not path.exists()]
    if missing:
        return f"the installation left no {', '.join(missing)} in build/cuda/"
    changed = max(path.stat().st_mtime for path in [*sources(), *headers()])
    stale = [path.name for path in map(object_of, sources()) if path.stat().st_mtime < changed]
    if stale:
        return f"csrc/ is newer than {', '.join(stale)} in build/cuda/; install fastcsm again"
    return host.why_not()


@cache
def nvcc_flags() -> list[str]:
    """setup.py's flags for one compilation without a target."""
    names: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("TORCH_TARGET", "NVCC_FLAGS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), names)
    left_out = ("-gencode", "-Xcompiler", "--threads")
    includes = [f"-isystem={path}" for path in include_paths()]
    return [flag for flag in names["NVCC_FLAGS"] if not flag.startswith(left_out)] + ["-Icsrc", *includes]


run = partial(host.run, cwd=ROOT)


def build(folder: Path = FOLDER) -> Path:
    """The library of launchers in ``folder``, named by a digest of what it is made of; built if it is new."""
    own = sorted(RUNTIME.glob("*.cpp"))
    registrations = ROOT / "csrc" / "library_cuda.cpp"
    made_of = [*objects(), *own, registrations, *headers()]
    target = folder / f"launchers-{host.digest(made_of, torch.__version__, *nvcc_flags())}.so"
    if target.exists():
        return target
    common = [find_nvcc(), "-std=c++20", "-O1", "-Icsrc", *(f"-isystem={path}" for path in include_paths())]
    common.append("-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden")
    # The stand-in for torch's allocator is written against torch's unstable interface, the others are not.
    stable = ["-DFASTCSM_EMULATION", *(flag for flag in nvcc_flags() if "TORCH_TARGET" in flag)]
    # It appears whole or not at all, so that processes may build at once.
    part = folder / f"{target.stem}-{os.getpid()}"
    part.mkdir(parents=True)
    made, commands = [], []
    for path in (registrations, *own):
        made.append(part / f"{path.name}.o")
        commands.append([*common, *(stable if path is registrations else []), "-c", "-o", made[-1], path])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    run([find_nvcc(), "-shared", "-cudart=none", "-o", part / target.name, *made, *objects(), *libraries])
    (part / target.name).rename(target)
    shutil.rmtree(part)
    return target


def shipped_ptx(source: Path) -> str:
    """The PTX for sm_90 in the installation's object of a source."""
    text = run([host.cuobjdump(), "-ptx", object_of(source)])
    return text[text.index(".version") :]


def compiled_ptx(source: Path, architecture: int, folder: Path, lines: bool = False) -> str:
    """The PTX that nvcc makes of a source, with lines of the source if wanted; kept in ``folder``."""
    options = ["-lineinfo"] * lines
    words = torch.__version__, run([find_nvcc(), "--version"]), *nvcc_flags(), *options
    digest = host.digest([source, *headers()], *words)
    target = folder / f"{source.stem}-sm_{architecture}-{digest}.ptx"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        kind = f"-gencode=arch=compute_{architecture},code=compute_{architecture}"
        relative = source.relative_to(ROOT)  # as the installation calls it, which is in the kernels' names
        run([find_nvcc(), *nvcc_flags(), *options, kind, "-ptx", "-o", part, relative])
        part.rename(target)
    return target.read_text(encoding="utf-8")


def plain_name(name: str) -> str:
    """A kernel's mangled name without nvcc's digests of the compilation."""
    return re.sub(r"_(GLOBAL__N_|INTERNAL)_[0-9a-f]{8}_|_cu_[0-9a-f]{8}", "_", name)


def entries(text: str) -> dict[str, str]:
    """The kernels of a module by their plain names."""
    return {plain_name(name): name for name in re.findall(r"\.entry\s+([\w$]+)", text)}


def extents(arguments: Any) -> Iterator[host.Range]:
    """The bytes of each tensor among an op's arguments."""
    for n, value in enumerate(tree_leaves(arguments)):
        if isinstance(value, torch.Tensor) and value.numel():
            yield host.Range.of(f"argument {n}", value)


class Machine:
    """The library's launches, executed; one a process."""

    def __init__(self, architecture: int, folder: Path, orders: int):
        self.architecture, self.folder, self.orders = architecture, folder, orders
        self.fault: BaseException | None = None
        self.arguments: list[host.Range] = []
        library = build(folder)
        torch.ops.load_library(library)
        self.library = ctypes.CDLL(str(library))
        self.library.machine_allocations.restype = ctypes.c_int64
        self.callback = Callback(self._launch)
        self.library.machine_device(self.callback, host.SHARED_LIMIT[architecture], MULTIPROCESSORS)
        self.sources = {name: source for source in sources() for name in entries(shipped_ptx(source))}
        self.modules: dict[Path, str] = {}

    def run(self, op: Callable[..., Any], *args: Any) -> Any:
        """op(*args), whose launches the machine executes.

        Raises:
            host.Fault: what the machine reported.
        """
        self.fault, self.arguments = None, list(extents(args))
        self.library.machine_allocations_begin()
        try:
            results = op(*args)
        except RuntimeError as error:
            if self.fault is not None:
                raise self.fault from error
            raise
        finally:
            self.library.machine_allocations_end()
        if self.fault is not None:
            raise self.fault
        return results

    def allocations(self) -> list[host.Range]:
        """What the running op has allocated."""
        count = self.library.machine_allocations(None, ctypes.c_int64(0))
        pairs = (ctypes.c_uint64 * (2 * count))()
        self.library.machine_allocations(pairs, ctypes.c_int64(count))
        return [
            host.Range(f"allocation of {size} bytes", at, size)
            for at, size in zip(pairs[::2], pairs[1::2], strict=True)
        ]

    def _launch(self, name: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> int:
        try:
            self._execute(plain_name(name.decode()), tuple(grid[0]), tuple(block[0]), shared, arguments)
        except BaseException as error:
            self.fault = error
            self.library.machine_fault(f"{type(error).__name__}: {error}".encode())
            return LAUNCH_FAILURE
        return 0

    def _text(self, source: Path) -> str:
        if source not in self.modules:
            shipped = self.architecture == 90
            self.modules[source] = (
                shipped_ptx(source) if shipped else compiled_ptx(source, self.architecture, self.folder)
            )
        return self.modules[source]

    def _execute(self, plain: str, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        source = self.sources[plain]
        text = self._text(source)
        module, name = host.load(text), entries(text)[plain]
        if block[1:] != (1, 1):
            raise host.Fault([f"{name}: blocks of {block} threads, the machine runs those of one dimension"])
        kernel = module.kernels[name]
        given = (ctypes.string_at(arguments[n], size) for n, (_, size) in enumerate(kernel.parameters))
        ranges = [*self.arguments, *self.allocations()]
        sizes = grid, block[0], shared, kernel.laid_out(given), ranges, self.architecture
        try:
            host.Launch(text, name, *sizes).run(self.orders)
        except host.Fault:
            # Again with lines of the source, of which the shipped code has none.
            lined = compiled_ptx(source, self.architecture, self.folder, lines=True)
            host.Launch(lined, entries(lined)[plain], *sizes).run(self.orders)
            raise


class OnTheMachine(backends.CUDA):
    """The CUDA backend, its kernels executed on the host; registered by tests and measurements alone."""

    name, device = "emulation", "cpu"

    def __init__(self, machine: Machine):
        self.machine = machine

    def missing(self) -> list[str]:  # type: ignore[override]
        return []

    def implementation(self, op: str) -> Callable[..., Any]:
        return partial(self.machine.run, super().implementation(op))


def on_the_machine(architecture: int = 90, folder: Path = FOLDER, orders: int = 2) -> OnTheMachine:
    """Register the backend "emulation", whose kernels the machine executes as compiled for ``architecture``.

    Args:
        architecture: 80 or 90.
        folder: where the library of launchers and compiled PTX are kept.
        orders: 2 to run each launch in a second order of warps and blocks too, and compare.
    """
    backend = OnTheMachine(Machine(architecture, folder, orders))
    backends.register(backend)
    return backend
