"""Builds csrc/cuda/ for the host, with csrc/emulation/ and sanitizers, and runs programs on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths, library_paths

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
COMPILER = shutil.which("g++")
FLAGS = [
    "-std=c++20",
    "-Og",  # half of -O1's time to compile, and no slower where every access is checked
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
]
# Without the checks whose faults AddressSanitizer reports too, and which take half of the compiler's time.
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "-fno-sanitize-recover=all",
]
# Every check of an access is a call, which the linker leads through csrc/emulation/cuda_emulation.cpp.
CHECKS = [*SANITIZERS, "--param", "asan-instrumentation-with-call-threshold=0"]
# The emulation has the machine's matrix units.
UNCHECKED = ["-O2", "-march=native", "-ffp-contract=off", f"-I{ROOT / 'bench' / 'machine'}"]
CALLS = [f"__asan_{kind}{size}" for kind in ("load", "store") for size in (1, 2, 4, 8, 16, "N")]
TORCH = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DFASTCSM_EMULATION"]


def why_not() -> str:
    """Why nothing can be built here; "" if it can."""
    if sys.platform != "linux" or COMPILER is None:
        return "needs Linux and g++"
    return "" if _runtime().is_file() else "needs g++'s AddressSanitizer"


def _runtime(name: str = "libasan.so") -> Path:
    """A library of the compiler's; a program not built with the sanitizer must load the sanitizer's first."""
    command = [COMPILER, f"-print-file-name={name}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def at_once(run: Callable[..., Done], arguments: Iterable[Any]) -> list[Done]:
    """``run`` of each of ``arguments``, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, arguments))


def build(target: Path, sources: Sequence[str], shared: bool = False) -> None:
    """Compile ``sources`` under csrc/, checked, and the emulation, unchecked, into a program or a library."""
    objects, commands = [], []
    includes = [f"-I{CSRC}", *(f"-isystem{path}" for path in include_paths())]
    for name in ("emulation/cuda_emulation.cpp", *sources):
        objects.append(target.parent / (name.replace("/", "_") + ".o"))
        kernels = name.endswith(".cu") or name == "emulation/cuda_test.cpp"
        flags = [*FLAGS, *includes, *TORCH, *(CHECKS if kernels else UNCHECKED)]
        commands.append([COMPILER, *flags, "-x", "c++", "-c", CSRC / name, "-o", objects[-1]])
    for done in at_once(partial(subprocess.run, capture_output=True, text=True, check=False), commands):
        assert done.returncode == 0, done.stderr
    wrap = "".join(f",--wrap={name}" for name in CALLS)
    libraries = (
        [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"] if shared else []
    )
    link = [COMPILER, *SANITIZERS, *objects, f"-Wl{wrap}", *libraries, "-o", target]
    subprocess.run([*link, "-shared"] if shared else link, check=True)


def build_library(folder: Path) -> Path:
    """All kernels as torch.ops.fastcsm_emulation, for tensors of the processor."""
    sources = [
        f"{part}/{path.name}"
        for part in ("cuda", "common")
        for path in sorted((CSRC / part).glob("*.c[pu]*"))
    ]
    target = folder / "emulation.so"
    build(target, [*sources, "library_cuda.cpp"], shared=True)
    return target


def python(*arguments: str, **environment: str) -> Done:
    """Run Python with the sanitizer's library loaded."""
    merged = {
        **os.environ,
        # With C++'s own, whose exceptions the sanitizer wraps.
        "LD_PRELOAD": f"{_runtime()} {_runtime('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=merged, capture_output=True, text=True, check=False
    )


assert torch  # its import makes cpp_extension's paths known
