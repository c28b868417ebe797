"""The machine from Python: builds it on first use, loads PTX, and runs launches with every check.

    report = host.Launch(ptx, "kernel", (blocks, 1, 1), 128, 0, parameters, ranges, architecture=90).run()

Global memory is the process's own: a pointer among the parameters is the address of a tensor of the
processor, and every access must lie in one of the ``ranges``.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "machine"
#: Contraction is off: an instruction rounds as the device's does.
FLAGS = ["-std=c++20", "-O2", "-ftree-vectorize", "-march=native", "-fPIC", "-fvisibility=hidden"]
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
#: Most bytes of shared memory that a block may have, by architecture.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}
#: Instructions of a warp in a block after which it counts as never ending.
LIMIT = 200_000_000


class Fault(RuntimeError):
    """What a kernel does wrong, in sentences that name kernel, line, instruction, block, warp and lane.

    Attributes:
        faults: one sentence each.
    """

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class Range(NamedTuple):
    """Memory that a launch may touch: ``bytes`` from ``address``, and what a fault calls it."""

    name: str
    address: int
    bytes: int

    @classmethod
    def of(cls, name: str, tensor: Any) -> "Range":
        """From a tensor's first element to its last."""
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        return cls(name, tensor.data_ptr(), (last + 1) * tensor.element_size())


class Kernel(NamedTuple):
    """What a kernel's head says: (offset, bytes) of each parameter, all their bytes, static shared memory."""

    parameters: list[tuple[int, int]]
    parameter_bytes: int
    static_shared: int
    threads: int

    def laid_out(self, values: Iterable[bytes]) -> bytes:
        """The parameter space with these parameters in it."""
        space = bytearray(self.parameter_bytes)
        for value, (offset, size) in zip(values, self.parameters, strict=True):
            space[offset : offset + size] = value
        return bytes(space)


class Report(NamedTuple):
    """One launch, and what was counted of it; see ``cases.py``."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    architecture: int
    counts: dict[str, Any]


class Module:
    """A loaded text. ``kernels`` has every kernel by name."""

    def __init__(self, text: str):
        self._library = library()
        self._handle = self._library.machine_load(text.encode())
        self.kernels = {name: Kernel(**entry) for name, entry in self.answer().items()}

    def answer(self) -> Any:
        text = self._library.machine_answer(self._handle).decode()
        if text.startswith("!"):
            raise Fault(text[1:].splitlines())
        return json.loads(text)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.machine_free(self._handle)


class _Request(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_int32),
        ("architecture", ctypes.c_int32),
        ("orders", ctypes.c_int32),
        ("checks", ctypes.c_int32),
        ("paths", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int64),
        ("parameters", ctypes.c_char_p),
        ("parameter_bytes", ctypes.c_int64),
        ("begins", ctypes.POINTER(ctypes.c_uint64)),
        ("sizes", ctypes.POINTER(ctypes.c_uint64)),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("ranges", ctypes.c_int64),
        ("limit", ctypes.c_uint64),
    )


def why_not() -> str:
    """Why the machine cannot be built here; "" if it can."""
    if not sys.platform.startswith("linux") or compiler() is None:
        return "needs Linux and g++"
    return ""


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++")


def run(command: Sequence[Any], **options: Any) -> str:
    """What the command prints; options are subprocess.run's.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed on {command[-1]}: {done.stderr.strip()[-3000:]}")
    return done.stdout


def cuobjdump() -> str | None:
    """Triton's, or that on PATH."""
    triton = importlib.util.find_spec("triton")
    own = f"{Path(triton.origin or '').parent}/backends/nvidia/bin" if triton else ""
    return shutil.which("cuobjdump", path=own) or shutil.which("cuobjdump")


def digest(paths: Iterable[Path], *words: str) -> str:
    """Of words, and of files and their names."""
    found = hashlib.sha256(" ".join(words).encode())
    for path in paths:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


@cache
def library() -> ctypes.CDLL:
    """The machine, built where its sources or the compiler changed."""
    sources = sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")])
    native = run([compiler(), "-march=native", "-Q", "--help=target"])
    target = BUILD / digest(sources, native, *FLAGS) / "machine.so"
    if not target.exists():
        compile_into(target, [path for path in sources if path.suffix == ".cpp"])
    loaded = ctypes.CDLL(str(target))
    loaded.machine_load.restype = ctypes.c_void_p
    loaded.machine_load.argtypes = [ctypes.c_char_p]
    loaded.machine_free.argtypes = [ctypes.c_void_p]
    loaded.machine_answer.restype = ctypes.c_char_p
    loaded.machine_answer.argtypes = [ctypes.c_void_p]
    loaded.machine_launch.restype = ctypes.c_char_p
    loaded.machine_launch.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Request)]
    return loaded


def compile_into(target: Path, sources: Sequence[Path]) -> None:
    """Compile and link; the library appears whole or not at all, so that processes may build at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects, part = [Path(folder, f"{path.stem}.o") for path in sources], Path(folder, target.name)
        commands = [[compiler(), *FLAGS, "-c", "-o", *pair] for pair in zip(objects, sources)]
        list(pool.map(run, commands))
        run([compiler(), "-shared", "-o", part, *objects])
        part.replace(target)


@lru_cache(maxsize=256)
def load(text: str) -> Module:
    """The kernels of a PTX text.

    Raises:
        Fault: if it is no PTX that the machine knows.
    """
    return Module(text)


class _Settings:
    listeners: ClassVar[list[list[Report]]] = []
    paths = False


@contextmanager
def recorded(paths: bool = False) -> Iterator[list[Report]]:
    """The reports of launches inside the ``with`` block; ``paths``: with chains of dependences."""
    reports: list[Report] = []
    before = _Settings.paths
    _Settings.listeners.append(reports)
    _Settings.paths = paths
    try:
        yield reports
    finally:
        _Settings.paths = before
        _Settings.listeners = [kept for kept in _Settings.listeners if kept is not reports]


class Launch(NamedTuple):
    """One launch of a compiled kernel.

    Attributes:
        ptx, kernel: the text, and the name of the kernel in it.
        grid: blocks along x, y and z.
        threads: of a block, along x.
        shared_bytes: dynamic shared memory of a block.
        parameters: bytes of the parameter space; short ones are filled with zeros.
        ranges: what the kernel may touch.
        architecture: 80 or 90, whose matrix units it has.
        tensors: what keeps that memory alive.
    """

    ptx: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: bytes
    ranges: Sequence[Range]
    architecture: int
    tensors: Sequence[Any] = ()

    def run(self, orders: int | None = None) -> Report:
        """Run it to its end, with every check.

        Args:
            orders: how many orders of warps and blocks it is run in; all must give the same bits. By default
                two, and one inside ``recorded(paths=True)``.

        Raises:
            Fault: for anything that is wrong; memory is then as the fault left it.
        """
        most = SHARED_LIMIT[self.architecture]
        if self.shared_bytes > most:
            text = f"{self.shared_bytes} bytes of shared memory, a block of sm_{self.architecture} has {most}"
            raise Fault([f"kernel {self.kernel}: {text}"])
        module = load(self.ptx)
        request = self._request(module, orders or (1 if _Settings.paths else 2))
        module._library.machine_launch(module._handle, ctypes.byref(request))
        counts = module.answer()
        if counts["faults"]:
            raise Fault(counts.pop("faults"))
        report = Report(self.kernel, self.grid, self.threads, self.shared_bytes, self.architecture, counts)
        for reports in _Settings.listeners:
            reports.append(report)
        return report

    def _request(self, module: Module, orders: int) -> _Request:
        given, number = len(self.parameters), len(self.ranges)
        size = module.kernels[self.kernel].parameter_bytes if self.kernel in module.kernels else given
        return _Request(
            kernel=self.kernel.encode(),
            grid=(ctypes.c_uint32 * 3)(*self.grid),
            threads=self.threads,
            architecture=self.architecture,
            orders=orders,
            checks=True,
            paths=_Settings.paths,
            shared_bytes=self.shared_bytes,
            parameters=self.parameters.ljust(size, b"\0"),
            parameter_bytes=max(size, given),
            begins=(ctypes.c_uint64 * number)(*(one.address for one in self.ranges)),
            sizes=(ctypes.c_uint64 * number)(*(one.bytes for one in self.ranges)),
            names=(ctypes.c_char_p * number)(*(one.name.encode() for one in self.ranges)),
            ranges=number,
            limit=LIMIT,
        )
