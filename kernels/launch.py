"""How kernels are launched: by which configuration, with how many programs, and where partial sums go."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .common.head import INTERPRETED, Head
from .common.head_backward import Need
from .common.head_sums import reduce_partials_kernel
from .configurations import (
    Key,
    Tiles,
    choices,
    head_candidates,
    head_spec,
    precision_of,
    reads_along_the_sum,
    shared_bytes,
)

#: Programs on a device without multiprocessors, which is the interpreter.
INTERPRETED_PROGRAMS = 3
#: Bound of all programs' partial sums together.
PARTIAL_BYTES = 48 << 20
#: Numbers that a slice of the partials, and each tensor in it, has a multiple of.
ALIGNED = 16
#: Of a multiprocessor of compute capability 8.0 and later.
REGISTERS = 65_536
#: Ops of kernels to which ptxas, unless told of a thread's 255 registers, gives 32 or 128, and thousands of
#: spills, where operands of products take registers.
GREEDY = ("csm_loss", "score_head_backward", "langevin_draw")
#: Seconds after which a compilation is announced.
PATIENCE = 2.0


class Launch(NamedTuple):
    """One launch: the kernel, its arguments, its constants by name, and how it is compiled."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


class Fit(NamedTuple):
    """Of a compiled kernel: bytes of shared memory that it asks for and may have, and programs at once."""

    shared: int = 0
    available: int = 1
    at_once: int = 1


class DoesNotFit(RuntimeError):
    """No configuration of a kernel can be launched on the device."""


Judge = Callable[[Launch], Fit]
_recorded: ContextVar[tuple[list[Launch], Judge] | None] = ContextVar("fastcsm_recorded", default=None)
_chosen: dict[Any, tuple[Any, int]] = {}
_launched: set[Any] = set()


@contextlib.contextmanager
def recorded(judge: Judge = lambda _: Fit()) -> Iterator[list[Launch]]:
    """Launches inside the ``with`` block, on tensors of any device, are listed instead of run.

    ``judge`` says of a launch what it asks of the device that is meant; by default everything fits.
    """
    launches: list[Launch] = []
    token = _recorded.set((launches, judge))
    try:
        yield launches
    finally:
        _recorded.reset(token)


@cache
def _properties(index: int) -> Any:
    return torch.cuda.get_device_properties(index)


def multiprocessors(device: torch.device) -> int:
    return _properties(device.index).multi_processor_count if device.type == "cuda" else INTERPRETED_PROGRAMS


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a CUDA device the current one, as Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def announced(kernel: Any) -> Iterator[None]:
    """Says on standard error what is being compiled once that has taken PATIENCE seconds."""
    text = f"fastcsm: compiling {kernel.__name__} for this device; Triton keeps it for later runs\n"
    timer = threading.Timer(PATIENCE, sys.stderr.write, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _compiled(entry: Launch) -> Fit:
    """What a launch asks of the current device; it is compiled for that, and loaded where it fits."""
    with announced(entry.kernel):
        kernel = entry.kernel.warmup(*entry.args, grid=(1,), **entry.constants, **entry.options)
    shared, available = kernel.metadata.shared, shared_bytes()
    if shared > available or device_of(entry.args).type != "cuda":
        return Fit(shared, available)
    kernel._init_handles()
    device, threads = _properties(device_of(entry.args).index), 32 * entry.options["num_warps"]
    # Registers are given to warps 256 at a time; a program has 1 KiB of shared memory besides its own.
    of_registers = REGISTERS // (-(-32 * kernel.n_regs // 256) * 256 * threads // 32)
    of_memory = device.shared_memory_per_multiprocessor // (shared + 1024)
    of_threads = device.max_threads_per_multi_processor // threads
    return Fit(shared, available, max(min(of_registers, of_memory, of_threads), 1))


def choose(key: Key, candidates: Sequence[Any], entry_of: Callable[[Any], Launch]) -> tuple[Any, int]:
    """The first candidate whose launch fits the device, and how many of its programs run at once there.

    Raises:
        DoesNotFit: if none does.
    """
    candidates, recording = choices.pick(key, tuple(candidates)), _recorded.get()
    first = entry_of(candidates[0])
    if recording is None and INTERPRETED:
        return candidates[0], 1
    with contextlib.nullcontext() if recording else on_device(device_of(first.args)):
        place = None if recording else triton.runtime.driver.active.get_current_device()
        others = tuple(value for name, value in first.constants.items() if name != "S")
        known = key, candidates, first.kernel, others, place
        if recording or known not in _chosen:
            judge = recording[1] if recording else _compiled
            for candidate in candidates:
                found = judge(entry_of(candidate))
                if found.shared <= found.available:
                    break
            else:
                raise DoesNotFit(
                    f"{first.kernel.__name__} does not fit this device for {key}: it asks for {found.shared}"
                    f" bytes of shared memory, a program has {found.available}"
                )
            if recording:
                return candidate, found.at_once
            _chosen[known] = candidate, found.at_once
        return _chosen[known]


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Where the first tensor of a launch's arguments is."""
    while not isinstance(args, Tensor):
        args = args[0]
    return args.device


def aligned(tensor: Tensor) -> Tensor:
    """A copy of what is not aligned to 16 bytes, which would be read by the element, by code of its own."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@cache
def constant(values: tuple[float | Sequence[float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or lines of them, as a tensor that nobody writes to, kept for the life of the process.

    A captured graph may hold its address. Any stream may read it: torch returns when the copy is done.
    """
    return torch.tensor(values, dtype=dtype, device=device)


def numbers(device: torch.device, *values: float) -> Tensor:
    """Numbers that arguments of a launch would round to float32, as float64; kept on the device."""
    return constant(values, torch.float64, device)


def offsets(tensors: Sequence[Tensor], alignment: int = ALIGNED) -> tuple[int, ...]:
    """Where each tensor's sums begin in a slice of the partials; then where they end."""
    return 0, *accumulate(alignment * triton.cdiv(tensor.numel(), alignment) for tensor in tensors)


class Outputs(NamedTuple):
    """Where the gradients of context and x go, empty where not needed."""

    grad_context: Any
    grad_x: Any


class HeadLaunch:
    """One launch of a kernel of the head on the rows of ``context`` (N, C) and ``x`` (N,).

    Attributes:
        tensors: the arguments all kernels begin with.
        precision: of products, as ``tl.dot`` has it.
        rows: of a tile; known once the kernel is.
        at_once: programs that share a multiprocessor.

    Args:
        full: products of float32 are as accurate as float32 whatever torch's setting.
        given: context features in memory, if ``context`` is something else.
        exact: products as accurate as float32, whose own would not fit in registers: three of tf32, or six of
            bfloat16, which are slower and lose less where tensor cores truncate sums.
        preconditioned: the head is, and the last context feature is -ln(tau).
    """

    def __init__(
        self,
        op: str,
        context: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        frequencies: Tensor,
        activation: str,
        full: bool = False,
        given: int | None = None,
        exact: str = "tf32x3",
        preconditioned: bool = False,
    ):
        parameters = Head(tuple(map(aligned, weights)), tuple(map(aligned, biases)), aligned(frequencies))
        self.tensors = aligned(context), aligned(x), parameters
        self.dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        self.offsets = offsets([*weights, *biases])
        self.precision = precision_of(x.dtype, exact, full)
        widths = tuple(weight.shape[0] for weight in weights[:-1])
        features = weights[0].shape[1] - 1 - 2 * len(frequencies)
        read = context.shape[1] - preconditioned if given is None else given
        sizes = features, read, len(frequencies), widths
        self._key = op, x.dtype, self.precision, preconditioned, *sizes
        self._spec = sizes, activation, self.precision, preconditioned
        self.rows, self.at_once = 0, 1
        told = op in GREEDY and not INTERPRETED and not reads_along_the_sum()
        self._registers = {"maxnreg": 255} if told else {}
        self._tiles: Tiles | None = None

    def _entry(self, tiles: Tiles, kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
        sizes, *rest = self._spec
        constants = constants | {"S": head_spec(tiles, *sizes, *rest)}
        return Launch(kernel, args, constants, _options(tiles.warps, 1) | self._registers)

    def fit(self, kernel: Any, args: tuple[Any, ...], **constants: Any) -> None:
        """Settle how the kernel is compiled, for arguments like these."""
        op, *_, frequencies, widths = self._key
        candidates = head_candidates(op, self.precision, widths, frequencies)
        tiles, self.at_once = choose(
            (*self._key, self._spec[1]), candidates, lambda tiles: self._entry(tiles, kernel, args, constants)
        )
        self._tiles, self.rows = tiles, tiles.rows

    def run(
        self, kernel: Any, args: tuple[Any, ...], programs: Callable[[], int] | None = None, **constants: Any
    ) -> None:
        """Launch ``kernel``, by default with the programs that run at once and go through the tiles."""
        if self._tiles is None:
            self.fit(kernel, args, **constants)
        assert self._tiles is not None
        entry = self._entry(self._tiles, kernel, args, constants)
        _launch(((programs or self.persistent)(),), entry)

    def chains(self) -> int:
        """Programs if every tile has its own."""
        return max(triton.cdiv(len(self.tensors[1]), self.rows), 1)

    def persistent(self) -> int:
        """Programs if they go through the tiles."""
        return min(multiprocessors(self.tensors[1].device) * self.at_once, self.chains())

    def gradients(
        self,
        kernel: Any,
        args: tuple[Any, ...],
        need: tuple[bool, bool, bool],
        scalars: list[Tensor],
        **constants: Any,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Launch a kernel that sums gradients, and add up its programs' sums.

        Args:
            args: what it takes between the tensors and the gradients.
            need: the gradients of context, x, and the parameters.
            scalars: where the further sums go.

        Returns:
            The gradients of context and x, empty where not needed, and of weights and biases, [] if not.
        """
        context, x, head = self.tensors
        outputs = Outputs(
            torch.empty_like(context) if need[0] else context.new_empty(0),
            torch.empty_like(x) if need[1] else x.new_empty(0),
        )
        constants |= {"NEED": Need(*need, self.offsets)}
        before, rows = (*self.tensors, *args, outputs), len(x)
        self.fit(kernel, (*before, x.new_empty(0, dtype=self.dtype), rows), **constants)
        size = self.offsets[-1] * need[2] + ALIGNED * len(scalars)
        programs = max(min(self.persistent(), PARTIAL_BYTES // (size * self.dtype.itemsize or 1)), 1)
        make = torch.empty if rows > 0 else torch.zeros  # the first tile of a program writes all its sums
        partials = make(programs * size, dtype=self.dtype, device=x.device)
        self.run(kernel, (*before, partials, rows), lambda: programs, **constants)
        parameters = [torch.empty_like(p) for p in (*head.weights, *head.biases)] if need[2] else []
        if parameters or scalars:
            reduce_partials(partials, programs, parameters + scalars, ALIGNED)
        layers = len(head.weights)
        return *outputs, parameters[:layers], parameters[layers:]


def reduce_partials(partials: Tensor, programs: int, outputs: Sequence[Tensor], alignment: int = 1) -> None:
    """Add up ``programs`` slices, each of which holds the outputs at multiples of ``alignment``."""
    begin, block = offsets(outputs, alignment), 256
    grid = (triton.cdiv(begin[-1], block),)
    sizes = tuple(output.numel() for output in outputs)
    args = partials, tuple(outputs), programs
    launch(reduce_partials_kernel, grid, args, 4, OFFSETS=begin, SIZES=sizes, BLOCK=block)


def _options(warps: int, stages: int) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def launch(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], warps: int, stages: int = 1, **constants: Any
) -> None:
    """Run ``kernel`` on the device and the current stream of the first argument, a tensor."""
    _launch(grid, Launch(kernel, args, constants, _options(warps, stages)))


def _launch(grid: tuple[int, ...], entry: Launch) -> None:
    recording = _recorded.get()
    if recording:
        recording[0].append(entry)
        return
    device = device_of(entry.args)
    known = entry.kernel, *entry.constants.values(), *entry.options.values(), device.index
    patient = INTERPRETED or known in _launched
    with on_device(device), contextlib.nullcontext() if patient else announced(entry.kernel):
        entry.kernel[grid](*entry.args, **entry.constants, **entry.options)
    _launched.add(known)
