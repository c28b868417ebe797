"""Triton's own launch path without a device: its launcher is the machine.

Inside ``on_the_machine(architecture)`` a call ``kernel[grid](*args, **constants, **options)`` goes the way it
goes on a GPU: Triton binds and specialises the arguments, compiles what it has not compiled yet, loads it,
and hands it to the driver's launcher with the arguments. Only the last step of compiling is left out, ptxas,
and what is loaded is the PTX, which the launcher has the machine execute on tensors of the processor.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    raise ImportError("TRITON_INTERPRET=1 is set: kernels that are interpreted cannot be compiled; unset it.")

import torch
from torch import Tensor
from triton.backends import backends as compilers
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from fastcsm import backends

from . import host

#: Most threads of a program.
MOST_THREADS = 1024
#: How a parameter that is no pointer is laid out, by its type in Triton's signature.
LAYOUT = {"i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q"}
LAYOUT |= {"u1": "<B", "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}
LAYOUT |= {"fp16": "<e", "fp32": "<f", "fp64": "<d"}

_run: ContextVar[Callable[[host.Launch], Any]] = ContextVar("machine_run")


@contextmanager
def launches_to(run: Callable[[host.Launch], Any]) -> Iterator[None]:
    """Hands every launch inside the ``with`` block to ``run`` in place of executing it."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


class Compiler(CUDABackend):
    """Triton's compiler for NVIDIA's devices, whose binary is the PTX."""

    def hash(self) -> str:
        """Not what the real compiler has: the binaries in Triton's cache differ."""
        return f"machine-{super().hash()}"

    def make_cubin(self, src: str, metadata: Any, opt: Any, capability: int) -> bytes:
        return src.encode()


class Driver:
    """A device that is not there, and its driver library, by what Triton asks of them.

    Its number is its architecture, as kernels are cached by device.
    """

    def __init__(self, architecture: int):
        self.architecture = architecture
        self.utils = self
        self.launcher_cls = Launcher

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": host.SHARED_LIMIT[self.architecture]}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """(nothing to unload, the kernel, registers, spills, most threads)."""
        ptx = binary.decode()
        host.load(ptx)
        return None, (ptx, name), 0, 0, MOST_THREADS

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(self.architecture, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Launcher:
    """Made by Triton for every kernel it compiles and called with every launch, as the real CudaLauncher."""

    def __init__(self, source: Any, metadata: Any):
        self.signature = source.signature
        self.architecture = metadata.target.arch
        unknown = {
            "clusters": metadata.num_ctas != 1,
            "scratch memory": metadata.global_scratch_size + metadata.profile_scratch_size > 0,
            "cooperative grids": metadata.launch_cooperative_grid,
            "programmatic dependent launch": metadata.launch_pdl,
        }
        if any(unknown.values()):
            raise NotImplementedError(
                f"{metadata.name} needs {', '.join(k for k, v in unknown.items() if v)}"
            )

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: tuple[str, str],
        packed: tuple[int, int, int],
        *rest: Any,
    ) -> None:
        """Of ``rest`` the first are the launch's metadata and two hooks, then come the kernel's arguments."""
        metadata, enter_hook, exit_hook, *args = rest
        warps, _, shared = packed
        ptx, name = function
        given = list(_flat(self.signature.items(), args))
        parameters = _laid_out(name, host.load(ptx).kernels[name], given)
        tensors = {label: value for label, _, value in given if isinstance(value, Tensor)}
        ranges = [host.Range.of(label, tensor) for label, tensor in tensors.items() if tensor.numel() > 0]
        if enter_hook is not None:
            enter_hook(metadata)
        if x * y * z > 0:
            sizes, kept = ((x, y, z), 32 * warps, shared), tuple(tensors.values())
            _run.get()(host.Launch(ptx, name, *sizes, parameters, ranges, self.architecture, kept))
        if exit_hook is not None:
            exit_hook(metadata)


def _flat(signature: Any, args: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, type, value) of every parameter: members of tuples one by one, constants left out."""
    for (name, kind), value in zip(signature, args, strict=True):
        if isinstance(kind, tuple):
            yield from _flat([(f"{name}[{n}]", part) for n, part in enumerate(kind)], value)
        elif kind != "constexpr":
            yield name, kind, value


def _laid_out(name: str, kernel: host.Kernel, given: list[tuple[str, str, Any]]) -> bytes:
    """The bytes of a kernel's parameters, of which the last two are addresses of Triton's scratch memory."""
    scratch = [("global scratch", "*i8", None), ("profile scratch", "*i8", None)]
    packed = [_packed(kind, value) for _, kind, value in (*given, *scratch)]
    sizes = [size for _, size in kernel.parameters]
    if [len(value) for value in packed] != sizes:
        raise host.Fault([f"{name}: its parameters have {sizes} bytes, it is given {given}"])
    return kernel.laid_out(packed)


def _packed(kind: str, value: Any) -> bytes:
    if kind.startswith("*"):
        return struct.pack("<Q", 0 if value is None else value.data_ptr())
    if kind == "bf16":  # truncated, as Triton's launcher does
        return struct.pack("<f", value)[2:]
    return struct.pack(LAYOUT[kind], value)


class TritonOnTheMachine(backends.Triton):
    """The Triton backend's kernels for tensors of the processor; registered here and nowhere else."""

    name = "triton_machine"

    def missing(self) -> list[str]:
        return []

    def refuses(self, op: str, request: backends.Request) -> list[str]:
        if backends.chosen() != self.name:
            return ["it is a test instrument, chosen by name only"]
        if request.device != "cpu":
            return [f"the tensors are on {request.device}"]
        return super().refuses(op, request._replace(device="cuda"))


backends.register(TritonOnTheMachine())
_drivers = {architecture: Driver(architecture) for architecture in host.SHARED_LIMIT}


@contextmanager
def with_driver(architecture: int) -> Iterator[None]:
    """What is launched inside the ``with`` block is chosen for an architecture; nothing can be run."""
    before = driver._active
    driver.set_active(_drivers[architecture])
    try:
        yield
    finally:
        driver._active = before


@contextmanager
def on_the_machine(architecture: int, orders: int = 1) -> Iterator[None]:
    """Triton's kernels inside the ``with`` block run on the machine, compiled for an architecture.

    The backend "triton_machine" runs fastcsm's ops so.

    Args:
        architecture: 80 or 90.
        orders: of warps and blocks in which every launch is executed; results must be equal bit by bit.
    """
    compiler = compilers["nvidia"]
    compilers["nvidia"] = type(compiler)(Compiler, compiler.driver)
    try:
        with with_driver(architecture), launches_to(partial(host.Launch.run, orders=orders)):
            yield
    finally:
        compilers["nvidia"] = compiler
