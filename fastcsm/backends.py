"""What can run the ops on this machine, what each backend supports, and why not.

A backend is an object with the members of :class:`Backend`. :func:`register` makes it known by its name;
:func:`select` answers, for one call of one op, which implementation runs it. Nothing else in the package
knows that backends exist but ``ops/``, which calls :func:`select` when an op runs, in compiled code too.
"""

import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from .activations import ACTIVATIONS
from .dispatch import why_not_cuda

__all__ = ["Backend", "Request", "backend", "chosen", "compose", "info", "register", "select"]

OPS = (
    "score_head",
    "csm_loss",
    "linear_csm_loss",
    "langevin",
    "langevin_draw",
    "masked_linear",
    "conditional_density",
    "probability_flow",
)
#: Ops whose products of float32 are never rounded to fewer bits, whatever torch's setting.
FULL_PRECISION = ("probability_flow",)
PREFERENCE = ("cuda", "triton", "cpu")
ENVIRONMENT = {
    "FASTCSM_BUILD": "read at installation: auto (the default), cpu, cuda, or python for no library"
}


class Request(NamedTuple):
    """What a call asks of a backend.

    Attributes:
        device: a device type.
        dtype: of the tensors.
        widths, inputs: output widths of the head's layers and its inputs; of a masked layer its outputs, one
            number, and its inputs.
        rows: of a masked layer the rows, rounded up to a power of two; 0 in requests that name a head.
    """

    device: str
    dtype: torch.dtype
    widths: tuple[int, ...]
    inputs: int = 0
    rows: int = 0


class Backend(Protocol):
    """The interface of a backend."""

    name: str

    def missing(self) -> list[str]:
        """Why the backend cannot run at all on this machine and how to get it; [] if it can."""

    def refuses(self, op: str, request: Request) -> list[str]:
        """Why the backend cannot run this call; [] if it can. Asked only when nothing is missing."""

    def implementation(self, op: str) -> Callable[..., Any]:
        """The function that runs ``op``, with the op's arguments and results."""


def _module(op: str) -> str:
    for suffix in ("_into", "_backward", "_nodes", "_draw"):
        op = op.removesuffix(suffix)
    return op


class Reference:
    """The specification itself: plain PyTorch, runs every op everywhere."""

    name = "reference"

    def missing(self) -> list[str]:
        return []

    def refuses(self, op: str, request: Request) -> list[str]:
        return [] if hasattr(self._module(op), op) else [f"it has no {op}"]

    def implementation(self, op: str) -> Callable[..., Any]:
        return getattr(self._module(op), op)

    @staticmethod
    def _module(op: str) -> Any:
        return importlib.import_module(f".reference.{_module(op)}", __package__)


class _Library:
    """What backends share that live in a library built from ``csrc/``, named for the backend."""

    name: str
    device: str
    ops: tuple[str, ...]
    composed: tuple[str, ...] = ("conditional_density_backward",)
    dtypes: tuple[torch.dtype, ...]
    max_hidden = 4

    @cache  # noqa: B019 (one instance lives as long as the module)
    def missing(self) -> list[str]:
        path = self.path()
        if path is None:
            return [f"the {self.name} library is not built: {self._why_not_built()}"]
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            return [f"{path.name} does not load: {error}"]
        return []

    def path(self) -> Path | None:
        """The library file, or None."""
        suffix = ".pyd" if sys.platform == "win32" else ".so"
        return next(iter(sorted(Path(__file__).parent.glob(f"_{self.name}*{suffix}"))), None)

    def _why_not_built(self) -> str:
        record = Path(__file__).parent / "_build.json"
        reasons = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        return reasons.get(self.name) or "install the package with a compiler for it and FASTCSM_BUILD unset"

    def refuses(self, op: str, request: Request) -> list[str]:
        if _module(op) not in self.ops or op in self.composed:
            return [f"it has no {op}"]
        reasons = []
        if request.device != self.device:
            reasons.append(f"the tensors are on {request.device}")
        if request.dtype not in self.dtypes:
            reasons.append(f"{request.dtype} is not one of {', '.join(map(str, self.dtypes))}")
        if len(request.widths) > self.max_hidden + 1:
            reasons.append(f"{len(request.widths) - 1} hidden layers are more than {self.max_hidden}")
        return reasons

    def implementation(self, op: str) -> Callable[..., Any]:
        kernel = getattr(self.kernels(), op).default

        def run(*args: Any) -> Any:
            dtype = next(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
            reduced = self.reduced(dtype) and not (op in FULL_PRECISION and dtype is torch.float32)
            return kernel(*(_code(a) if isinstance(a, str) else a for a in args), reduced)

        return run

    def kernels(self) -> Any:
        """The library's ops."""
        return getattr(torch.ops, f"fastcsm_{self.name}")

    def reduced(self, dtype: torch.dtype) -> bool:
        """Whether products may use narrower units, by torch's setting for float32 products."""
        raise NotImplementedError


class CPU(_Library):
    """Fused C++ kernels for processors."""

    name = device = "cpu"
    ops = (
        "score_head",
        "csm_loss",
        "langevin",
        "masked_linear",
        "conditional_density",
        "probability_flow",
    )
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def reduced(self, dtype: torch.dtype) -> bool:
        return dtype is torch.bfloat16 or (
            dtype is torch.float32 and torch.get_float32_matmul_precision() == "medium"
        )


class CUDA(_Library):
    """CUDA C++ kernels, in ``csrc/cuda/``; "auto" takes those that ``dispatch.json`` has as faster."""

    name = device = "cuda"
    ops = (*CPU.ops, "rescale")
    composed = ("conditional_density_backward", "conditional_density_draw")
    dtypes = (torch.float32, torch.bfloat16)
    max_width = 128
    least_major = 8

    @cache  # noqa: B019
    def missing(self) -> list[str]:
        if not torch.cuda.is_available():
            return ["no CUDA device is available"]
        major, minor = torch.cuda.get_device_capability()
        if major < self.least_major:
            return [f"the CUDA device has compute capability {major}.{minor}, {self.least_major}.0 is needed"]
        return super().missing()

    def refuses(self, op: str, request: Request) -> list[str]:
        reasons = super().refuses(op, request)
        layer = _module(op) == "masked_linear"
        if not reasons and not layer and request.widths:
            reasons = self._too_large(op, request)
        if chosen() == "auto" and not reasons:
            # A layer that is asked for a head is a part of a composition; nodes cost what their density does.
            measured = "linear_csm_loss" if layer and not request.rows else op.removesuffix("_nodes")
            reasons = [why_not_cuda(measured, request.dtype, request.inputs, request.widths, request.rows)]
        return [reason for reason in reasons if reason]

    def _too_large(self, op: str, request: Request) -> list[str]:
        """Why the kernels of a head do not run one of these sizes."""
        reasons = []
        widest = max(request.widths[:-1], default=0)
        if widest > self.max_width:
            reasons.append(f"a hidden layer of {widest} units is wider than {self.max_width}: see triton")
        if not reasons:
            half = request.dtype is torch.bfloat16
            need, most = self.kernels().shared_bytes(op, half, request.inputs, len(request.widths) - 1)
            if need > most:
                reasons.append(f"it needs {need >> 10} KiB of shared memory, a block has {most >> 10}")
        return reasons

    def reduced(self, dtype: torch.dtype) -> bool:
        return dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"


def _code(activation: str) -> int:
    return -1 if activation == "identity" else ACTIVATIONS[activation].code


class Triton:
    """Fused Triton kernels for CUDA devices, in ``kernels/``.

    With TRITON_INTERPRET=1 they run in Triton's interpreter on CPU tensors, for tests: slowly, and only where
    the backend is chosen by name.
    """

    name = "triton"
    ops = (
        "score_head",
        "csm_loss",
        "langevin",
        "langevin_draw",
        "masked_linear",
        "conditional_density",
        "probability_flow",
        "rescale",
    )
    composed = ("conditional_density_backward",)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    interpreted_dtypes = (torch.float32, torch.float64)
    max_hidden = 4
    max_width = 512
    least_major = 8

    @staticmethod
    def interpreted() -> bool:
        return os.environ.get("TRITON_INTERPRET") == "1"

    def missing(self) -> list[str]:
        if importlib.util.find_spec("triton") is None:
            return ["the package triton is not installed: pip install 'fastcsm[triton]'"]
        if importlib.util.find_spec(f"{__package__}.kernels") is None:
            return ["its kernels are not importable: install fastcsm, or link fastcsm/kernels to kernels/"]
        if self.interpreted():
            return []
        if not torch.cuda.is_available():
            return ["no CUDA device is available"]
        major, minor = torch.cuda.get_device_capability()
        if major < self.least_major:
            return [f"the CUDA device has compute capability {major}.{minor}, {self.least_major}.0 is needed"]
        return []

    def refuses(self, op: str, request: Request) -> list[str]:
        if (op if op.endswith("_draw") else _module(op)) not in self.ops or op in self.composed:
            return [f"it has no {op}"]
        reasons = []
        interpreted = self.interpreted()
        if interpreted and chosen() != self.name:
            reasons.append("Triton's interpreter is on (TRITON_INTERPRET=1), which is for tests")
        if request.device != ("cpu" if interpreted else "cuda"):
            reasons.append(f"the tensors are on {request.device}")
        dtypes = self.interpreted_dtypes if interpreted else self.dtypes
        if request.dtype not in dtypes:
            reasons.append(f"{request.dtype} is not one of {', '.join(map(str, dtypes))}")
        if len(request.widths) > self.max_hidden + 1:
            reasons.append(f"{len(request.widths) - 1} hidden layers are more than {self.max_hidden}")
        if _module(op) != "masked_linear" and max(request.widths, default=0) > self.max_width:
            reasons.append(f"a hidden layer of {max(request.widths)} units is wider than {self.max_width}")
        if not reasons and not interpreted:
            kernels = importlib.import_module(".kernels.configurations", __package__)
            need = kernels.least_shared(op, request.dtype, request.widths[:-1])
            if need > (most := self.shared_bytes()):
                reasons.append(f"it needs {need >> 10} KiB of shared memory, a program has {most >> 10}")
        return reasons

    def shared_bytes(self) -> int:
        """Bytes of shared memory that a program may have on the current device."""
        return importlib.import_module(".kernels.configurations", __package__).shared_bytes()

    def implementation(self, op: str) -> Callable[..., Any]:
        return getattr(importlib.import_module(f".kernels.{_module(op)}", __package__), op)


class Absent:
    """A name that is known but has nothing behind it yet."""

    def __init__(self, name: str, reason: str):
        self.name = name
        self._reason = reason

    def missing(self) -> list[str]:
        return [self._reason]

    def refuses(self, op: str, request: Request) -> list[str]:
        return [self._reason]

    def implementation(self, op: str) -> Callable[..., Any]:
        raise RuntimeError(self._reason)


Implementation = Callable[..., Any]


class Composition(NamedTuple):
    """An op made of the ops ``parts`` by ``build(backend.implementation)``."""

    parts: tuple[str, ...]
    build: Callable[[Callable[[str], Implementation]], Implementation]


_backends: dict[str, Backend] = {}
_compositions: dict[str, Composition] = {}
_choice: ContextVar[str] = ContextVar("fastcsm_backend", default="auto")
_selected: dict[tuple[str, Request, str, str], Implementation] = {}


def register(backend: Backend) -> None:
    """Make a backend known by ``backend.name``, in the place of any earlier one of that name.

    "auto" tries the names of ``PREFERENCE`` first, then other names in the order they were registered, and
    the reference last.
    """
    if backend.name == "auto":
        raise ValueError("backend.name must not be 'auto', which means the automatic choice")
    _backends[backend.name] = backend
    _selected.clear()


def compose(op: str, parts: tuple[str, ...], build: Callable[..., Implementation]) -> None:
    """Let a backend that refuses ``op`` but runs ``parts`` run it as ``build(backend.implementation)``."""
    _compositions[op] = Composition(parts, build)
    _selected.clear()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on one backend; per thread, and per asynchronous task.

    Args:
        name: "auto" (the default behaviour: the first backend that can run the call, the reference if none
            can), or "reference", "cpu", "triton", "cuda", or a registered name. An op that the named backend
            cannot run raises RuntimeError with every reason. The backward pass of an op runs on the choice
            that was in force in its forward pass; in compiled code, on the choice in force when it runs.

    Raises:
        ValueError: if the name is not known.
    """
    if name != "auto" and name not in _backends:
        raise ValueError(f"backend must be one of {', '.join(['auto', *_backends])}, got {name!r}")
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


def chosen() -> str:
    """The name the innermost :func:`backend` block of this thread gave, or "auto"."""
    return _choice.get()


def select(op: str, request: Request) -> Callable[..., Any]:
    """The implementation that runs ``op`` for ``request`` under the choice in force.

    Raises:
        RuntimeError: if the backend was chosen by name and cannot run the call; the message has every reason.
    """
    choice = _choice.get()
    key = (op, request, choice, torch.get_float32_matmul_precision())
    found = _selected.get(key)
    if found is None:
        picked = _pick(op, request, choice)
        if picked.refuses(op, request):
            found = _compositions[op].build(picked.implementation)
        else:
            found = picked.implementation(op)
        _selected[key] = found
    return found


def _order() -> list[Backend]:
    names = [name for name in PREFERENCE if name in _backends]
    names += [name for name in _backends if name not in (*PREFERENCE, "reference")]
    return [_backends[name] for name in (*names, "reference")]


def _reasons(backend: Backend, op: str, request: Request) -> list[str]:
    """Why the backend can run ``op`` neither by a kernel of its own nor by composition."""
    reasons = backend.missing() or backend.refuses(op, request)
    if reasons and not backend.missing() and op in _compositions:
        reasons = [why for part in _compositions[op].parts for why in backend.refuses(part, request)]
    return list(dict.fromkeys(reasons))


def _pick(op: str, request: Request, choice: str) -> Backend:
    if choice == "auto":
        return next(backend for backend in _order() if not _reasons(backend, op, request))
    reasons = _reasons(_backends[choice], op, request)
    if reasons:
        raise RuntimeError(f"backend {choice!r} cannot run {op}: {'; '.join(reasons)}")
    return _backends[choice]


class Info(dict):
    """A dict of plain values whose str() is a table; see :func:`info`."""

    def __str__(self) -> str:
        lines = [f"{name:<12}{value}" for name, value in self["versions"].items()]
        lines += ["", "libraries"]
        lines += [f"  {name:<10}{value}" for name, value in self["libraries"].items()]
        lines += ["", f"{'op':<20}{'device':<8}{'backend':<12}not used"]
        for op, devices in self["ops"].items():
            for device, entry in devices.items():
                reasons = [f"{name}: {'; '.join(why)}" for name, why in entry["not"].items()] or ["-"]
                lines.append(f"{op:<20}{device:<8}{entry['backend']:<12}{reasons[0]}")
                lines += [" " * 40 + reason for reason in reasons[1:]]
        lines += ["", "environment variables"]
        for name, entry in self["environment"].items():
            value = "unset" if entry["value"] is None else repr(entry["value"])
            lines.append(f"  {name} ({value}): {entry['meaning']}")
        return "\n".join(lines)


def info() -> Info:
    """What was found on this machine, what is used for each op and device, and why not the others.

    Returns:
        A dict (its str() is the table that ``fastcsm info`` prints) with the entries "versions", "libraries",
        "ops" and "environment". ``info()["ops"][op][device]`` has "backend", the backend chosen for float32
        under "auto", and "not", the reasons of each backend that was passed over.
    """
    from . import __version__

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    ops: dict[str, dict[str, Any]] = {}
    for op in OPS:
        ops[op] = {}
        for device in devices:
            passed = {}
            for candidate in _order():
                reasons = _reasons(candidate, op, Request(device, torch.float32, (128, 128, 1), 65))
                if not reasons:
                    break
                passed[candidate.name] = reasons
            ops[op][device] = {"backend": candidate.name, "not": passed}
    return Info(
        versions={
            "fastcsm": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            + "".join(f", {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
        },
        libraries={name: _describe(_backends[name]) for name in ("cpu", "cuda")},
        ops=ops,
        environment={
            name: {"value": os.environ.get(name), "meaning": meaning} for name, meaning in ENVIRONMENT.items()
        },
    )


def _describe(backend: Backend) -> str:
    reasons = backend.missing()
    if reasons or not isinstance(backend, _Library):
        return "; ".join(reasons) or "available"
    isa = f", instruction set {torch.ops.fastcsm_cpu.isa()}" if isinstance(backend, CPU) else ""
    return f"{backend.path()}{isa}"


register(Reference())
register(CPU())
register(Triton())
register(CUDA())
