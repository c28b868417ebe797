"""The rule of choice: what a backend is, those that are known, and which of them runs a call."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch

from . import precision

Implementation = Callable[..., Any]

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
#: Hidden layers of the deepest head, and the oldest major compute capability, that kernels are compiled for.
MAX_HIDDEN = 4
LEAST_MAJOR = 8


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

    def implementation(self, op: str) -> Implementation:
        """The function that runs ``op``, with the op's arguments and results, at torch's precision of now.

        Rows are (N, C) and (N,), or of any leading shape for a function that has a true ``any_shape``.
        """


def module_of(op: str) -> str:
    """The file of an op, which has its backward pass, its nodes and its draw too."""
    for suffix in ("_into", "_backward", "_nodes", "_draw"):
        op = op.removesuffix(suffix)
    return op


def device_missing() -> list[str]:
    """Why no CUDA device runs kernels here; [] if one does."""
    if not torch.cuda.is_available():
        return ["no CUDA device is available"]
    major, minor = torch.cuda.get_device_capability()
    if major < LEAST_MAJOR:
        return [f"the CUDA device has compute capability {major}.{minor}, {LEAST_MAJOR}.0 is needed"]
    return []


def mismatches(request: Request, device: str, dtypes: Sequence[torch.dtype]) -> list[str]:
    """Why kernels for these tensors cannot run the request."""
    reasons = []
    if request.device != device:
        reasons.append(f"the tensors are on {request.device}")
    if request.dtype not in dtypes:
        reasons.append(f"{request.dtype} is not one of {', '.join(map(str, dtypes))}")
    if len(request.widths) > MAX_HIDDEN + 1:
        reasons.append(f"{len(request.widths) - 1} hidden layers are more than {MAX_HIDDEN}")
    return reasons


class Composition(NamedTuple):
    """An op made of the ops ``parts`` by ``build(backend.implementation)``."""

    parts: tuple[str, ...]
    build: Callable[[Callable[[str], Implementation]], Implementation]


known: dict[str, Backend] = {}  # by name
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
    known[backend.name] = backend
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
    if name != "auto" and name not in known:
        raise ValueError(f"backend must be one of {', '.join(['auto', *known])}, got {name!r}")
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


def chosen() -> str:
    """The name the innermost :func:`backend` block of this thread gave, or "auto"."""
    return _choice.get()


def select(op: str, request: Request) -> Implementation:
    """The implementation that runs ``op`` for ``request`` under the choice in force.

    Raises:
        RuntimeError: if the backend was chosen by name and cannot run the call; the message has every reason.
    """
    choice, words = _choice.get(), precision.of_products(request.device)
    if choice != "auto":  # a kernel for GPUs that is chosen by name may run on the host, in tests
        words += precision.of_products("cuda")
    key = op, request, choice, words
    found = _selected.get(key)
    if found is None:
        picked = _pick(op, request, choice)
        if picked.refuses(op, request):
            found = _compositions[op].build(picked.implementation)
        else:
            found = picked.implementation(op)
        _selected[key] = found
    return found


def order() -> list[Backend]:
    """The backends as "auto" tries them."""
    names = [name for name in PREFERENCE if name in known]
    names += [name for name in known if name not in (*PREFERENCE, "reference")]
    return [known[name] for name in (*names, "reference")]


def why_not(backend: Backend, op: str, request: Request) -> list[str]:
    """Why the backend can run ``op`` neither by a kernel of its own nor by composition."""
    reasons = backend.missing() or backend.refuses(op, request)
    if reasons and not backend.missing() and op in _compositions:
        reasons = [why for part in _compositions[op].parts for why in backend.refuses(part, request)]
    return list(dict.fromkeys(reasons))


def _pick(op: str, request: Request, choice: str) -> Backend:
    if choice == "auto":
        return next(backend for backend in order() if not why_not(backend, op, request))
    reasons = why_not(known[choice], op, request)
    if reasons:
        raise RuntimeError(f"backend {choice!r} cannot run {op}: {'; '.join(reasons)}")
    return known[choice]
