"""How kernels are launched: number of programs, arguments, and where partial sums go."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .configurations import head_config, precision_of
from .head_sums import reduce_partials_kernel

#: Programs on a device without multiprocessors, which is the interpreter.
INTERPRETED_PROGRAMS = 3
#: Bound of all programs' partial sums together.
PARTIAL_BYTES = 48 << 20


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def programs(device: torch.device, most: int) -> int:
    """Programs of a persistent kernel that has ``most`` tiles, at least one."""
    available = _multiprocessors(device.index) if device.type == "cuda" else INTERPRETED_PROGRAMS
    return max(min(available, most), 1)


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a CUDA device the current one, as Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@lru_cache(maxsize=64)
def numbers(device: torch.device, *values: float) -> Tensor:
    """Numbers that arguments of a launch would round to float32, as float64; kept on the device."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def offsets(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[int, ...]:
    """Where each parameter's gradient begins in a slice of the partials; then where the last ends."""
    return 0, *accumulate(parameter.numel() for parameter in (*weights, *biases))


class HeadLaunch:
    """One launch of a kernel of the head on the rows of ``context`` (N, C) and ``x`` (N,).

    Attributes:
        tensors: the arguments all kernels begin with.

    Args:
        full: products of float32 are as accurate as float32 whatever torch's setting.
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
        full: bool = False,
    ):
        self.tensors = context, x, tuple(weights), tuple(biases), frequencies
        self.dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        self.offsets = offsets(weights, biases)
        widths = tuple(weight.shape[0] for weight in weights[:-1])
        sizes = weights[0].shape[1] - 1 - 2 * len(frequencies), len(frequencies)
        # Three products of tensor cores, as accurate as float32; its own products would not fit in registers.
        precision = precision_of(x.dtype, "tf32x3", full)
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
        chains = op in ("langevin", "langevin_draw")
        self.programs = max(tiles, 1) if chains else programs(x.device, tiles)

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
