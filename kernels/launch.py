"""How kernels are launched: tile sizes, number of programs, and where partial sums go."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .head_sums import reduce_partials_kernel

#: Programs on a device without multiprocessors, which is the interpreter.
INTERPRETED_PROGRAMS = 3
#: Bound of all programs' partial sums together.
PARTIAL_BYTES = 48 << 20
#: Most sums of gradients a program holds in registers, in elements of float32.
RESIDENT_ELEMENTS = 4 * 1024


#: Most columns of the context in one product.
CONTEXT_CHUNK = 64


class Config(NamedTuple):
    """How one kernel of the head is compiled.

    Attributes:
        tile: rows, chunk of hidden units, chunk of the context, and frequencies padded.
        warps: warps of a program.
        resident: whether the sums of the parameters' gradients stay in registers.
    """

    tile: tuple[int, int, int, int]
    warps: int
    resident: bool


def padded(size: int) -> int:
    """The next power of two, at least 16: a size that ``tl.dot`` takes."""
    return max(triton.next_power_of_2(size), 16)


def chunk(widths: Sequence[int]) -> int:
    """Columns of hidden units in a tensor: all of a layer up to 128, else 128 or 64, whichever pads less."""
    if max(widths) <= 128:
        return padded(max(widths))
    return min((128, 64), key=lambda block: sum(-(-width // block) * block for width in widths))


def head_config(
    op: str, dtype: torch.dtype, context: int, frequencies: int, widths: tuple[int, ...]
) -> Config:
    """The configuration of ``op`` ("score_head", "csm_loss" or "langevin") for one head.

    A warp's product covers 16 rows and whole chunks, so that chunks bound the registers of a thread.
    """
    most = {"score_head": 128 if dtype.itemsize == 2 else 64, "csm_loss": 64, "langevin": 32}[op]
    block = min(chunk(widths), most if max(widths) <= 128 else 64)
    full = [-(-width // block) * block for width in widths]
    features = min(padded(context), CONTEXT_CHUNK), padded(frequencies)
    sums = full[0] * (context + 2 * features[1] * (frequencies > 0))
    sums += sum(i * o for i, o in pairwise(full))
    rows, warps = (16, 1) if op == "langevin" else (64, 4)
    tile = rows, block, *features
    return Config(tile, warps, sums <= RESIDENT_ELEMENTS)


class LinearConfig(NamedTuple):
    """How the kernels of a masked layer are compiled: tiles (bm, bn), steps of bk along the sum."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int

    def tile(self) -> dict[str, Any]:
        return {"BM": self.bm, "BN": self.bn, "BK": self.bk}


def linear_config(dtype: torch.dtype) -> LinearConfig:
    """The configuration of the kernels of ``masked_linear``."""
    if dtype.itemsize == 2:
        return LinearConfig(128, 128, 64, 8, 3)
    if precision_of(dtype) == "tf32":
        return LinearConfig(128, 128, 32, 8, 3)
    return LinearConfig(64, 64, 16, 4, 2)


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def programs(device: torch.device, most: int) -> int:
    """Programs of a persistent kernel that has ``most`` tiles, at least one."""
    available = _multiprocessors(device.index) if device.type == "cuda" else INTERPRETED_PROGRAMS
    return max(min(available, most), 1)


def precision_of(dtype: torch.dtype, exact: str = "ieee") -> str:
    """``tl.dot``'s input_precision by torch's setting for float32 products, ``exact`` for "highest"."""
    if dtype is not torch.float32:
        return "ieee"
    return exact if torch.get_float32_matmul_precision() == "highest" else "tf32"


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a CUDA device the current one, as Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def offsets(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[int, ...]:
    """Where each parameter's gradient begins in a slice of the partials; then where the last ends."""
    return 0, *accumulate(parameter.numel() for parameter in (*weights, *biases))


class HeadLaunch:
    """One launch of a kernel of the head on the rows of ``context`` (N, C) and ``x`` (N,).

    Attributes:
        tensors: the arguments all kernels begin with.
    """

    def __init__(
        self,
        op: str,
        context: Tensor,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        frequencies: Tensor,
        activation: str,
    ):
        self.tensors = context, x, tuple(weights), tuple(biases), frequencies
        self.dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        self.offsets = offsets(weights, biases)
        widths = tuple(weight.shape[0] for weight in weights[:-1])
        sizes = weights[0].shape[1] - 1 - 2 * len(frequencies), len(frequencies)
        # Three products of tensor cores, as accurate as float32; its own products would not fit in registers.
        precision = precision_of(x.dtype, "tf32x3")
        self.config = head_config(op, x.dtype, *sizes, widths)
        self.constants: dict[str, Any] = {
            "C": sizes[0],
            "E": sizes[1],
            "WIDTHS": widths,
            "TILE": self.config.tile,
            "ACTIVATION": activation,
            "P": precision,
        }
        tiles = triton.cdiv(len(x), self.config.tile[0])
        if op == "csm_loss":
            slices = PARTIAL_BYTES // ((self.offsets[-1] + 1) * self.dtype.itemsize)
            tiles = min(tiles, max(slices, 1))
        self.programs = max(tiles, 1) if op == "langevin" else programs(x.device, tiles)

    def gradients(self, need_context: bool, need_x: bool) -> tuple[Tensor, Tensor]:
        """Where the gradients of context and x go, empty where not needed."""
        context, x = self.tensors[:2]
        return (
            torch.empty_like(context) if need_context else context.new_empty(0),
            torch.empty_like(x) if need_x else x.new_empty(0),
        )

    def partials(self, need_params: bool, scalars: int) -> Tensor:
        """Every program's slice: the parameters' gradients if needed, and ``scalars`` further sums."""
        size = self.programs * (self.offsets[-1] * need_params + scalars)
        make = torch.zeros if need_params and not self.config.resident else torch.empty
        return make(size, dtype=self.dtype, device=self.tensors[1].device)

    def run(self, kernel: Any, args: tuple[Any, ...], **constants: Any) -> None:
        """Launch ``kernel``; with NEED_PARAMS among ``constants`` it is one that sums gradients."""
        if "NEED_PARAMS" in constants:
            constants["RESIDENT"] = self.config.resident and constants["NEED_PARAMS"]
            constants["OFFSETS"] = self.offsets
        launch(kernel, (self.programs,), args, self.config.warps, **self.constants, **constants)

    def reduce(
        self, partials: Tensor, need_params: bool, scalars: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of weights and biases, [] if not needed, and the scalars written to their tensors."""
        _, _, weights, biases, _ = self.tensors
        parameters = [torch.empty_like(p) for p in (*weights, *biases)] if need_params else []
        outputs = parameters + scalars
        if outputs:
            reduce_partials(partials, self.programs, outputs)
        return parameters[: len(weights)], parameters[len(weights) :]


def reduce_partials(partials: Tensor, programs: int, outputs: Sequence[Tensor]) -> None:
    """Add up ``programs`` slices, each of which holds the outputs one after the other."""
    bounds = (0, *accumulate(output.numel() for output in outputs))
    block = 256
    grid = (triton.cdiv(bounds[-1], block),)
    args = partials, tuple(outputs), programs
    launch(reduce_partials_kernel, grid, args, 4, OFFSETS=bounds, STRIDE=bounds[-1], BLOCK=block)


class Launch(NamedTuple):
    """One launch: the kernel, its arguments, its constants by name, and how it is compiled."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


_recorded: ContextVar[list[Launch] | None] = ContextVar("fastcsm_recorded", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside the ``with`` block, on tensors of any device, are listed instead of run."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], warps: int, stages: int = 1, **constants: Any
) -> None:
    """Run ``kernel`` on the device and the current stream of the first argument, a tensor."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    launches = _recorded.get()
    if launches is not None:
        launches.append(Launch(kernel, args, constants, options))
        return
    with on_device(args[0].device):
        kernel[grid](*args, **constants, **options)
