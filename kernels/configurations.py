"""How each kernel is compiled: candidates for every op, dtype and size, of which the first is the default.

``tuning.tune`` times the candidates of a call and has the fastest used for the rest of the process; nothing
else ever changes which one is used, so that equal calls give equal bits.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from triton.language.target_info import current_target

from fastcsm.backends.precision import of_products

from .common.head import Spec

#: Most columns of the context in one product.
CONTEXT_CHUNK = 64
#: Widths up to which a head counts as narrow.
NARROW = 128


class Tiles(NamedTuple):
    """A candidate for a kernel of the head: rows of a tile, most hidden units in a chunk, and warps.

    ``first`` is the most units in a chunk of the first of several layers where it is not kept, and ``held``
    whether weights stay in shared memory for all steps of a chain.
    """

    rows: int
    chunk: int
    warps: int
    first: int = 64
    held: bool = True


class Linear(NamedTuple):
    """A candidate for the kernels of a masked layer: tiles (bm, bn), steps of bk along the sum."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


#: Candidates of the kernels of a head by its size and the precision of products. Eight warps share the units
#: of 64 rows where one chunk holds a layer; products of three parts take twice the registers.
_PASS = {
    ("small", "ieee"): (Tiles(64, 64, 4), Tiles(128, 64, 4), Tiles(32, 64, 4)),
    ("small", "tf32"): (Tiles(64, 64, 4), Tiles(32, 64, 4), Tiles(16, 64, 4)),
    ("small", "tf32x3"): (Tiles(32, 64, 4), Tiles(16, 64, 4), Tiles(16, 64, 8)),
    ("narrow", "ieee"): (Tiles(64, 128, 8, 128), Tiles(32, 128, 8, 128), Tiles(64, 64, 4)),
    ("narrow", "tf32"): (Tiles(64, 128, 8, 128), Tiles(32, 128, 8, 128), Tiles(16, 64, 4)),
    ("narrow", "tf32x3"): (Tiles(32, 128, 8, 128), Tiles(16, 64, 4), Tiles(16, 128, 8, 128)),
    ("wide", "ieee"): (Tiles(32, 128, 8), Tiles(16, 64, 4)),
    ("wide", "tf32"): (Tiles(32, 128, 8), Tiles(16, 64, 4)),
    ("wide", "tf32x3"): (Tiles(16, 64, 4), Tiles(16, 64, 8)),
}
_ROWS = {
    **_PASS,
    ("narrow", "ieee"): (Tiles(128, 128, 8, 128), Tiles(64, 128, 8, 128), Tiles(64, 64, 4)),
    ("narrow", "tf32"): (Tiles(64, 128, 8, 128), Tiles(64, 64, 4), Tiles(16, 64, 4)),
    ("narrow", "tf32x3"): (Tiles(32, 128, 8, 128), Tiles(16, 64, 4)),
}
#: A chain's time is the latency of its steps: few rows, and their columns spread over warps. Weights stay in
#: shared memory for all steps where they fit.
_CHAIN = {
    ("narrow", "ieee"): (Tiles(16, 64, 4), Tiles(16, 128, 8), Tiles(32, 128, 8), Tiles(16, 32, 1)),
    ("narrow", "tf32"): (Tiles(16, 64, 4), Tiles(16, 64, 4, held=False), Tiles(16, 128, 8)),
    ("narrow", "tf32x3"): (Tiles(16, 64, 4), Tiles(16, 64, 4, held=False), Tiles(16, 128, 8)),
    ("wide", "ieee"): (Tiles(16, 64, 4), Tiles(16, 64, 4, held=False), Tiles(16, 64, 8, held=False)),
    ("wide", "tf32"): (Tiles(16, 64, 4, held=False), Tiles(16, 64, 8, held=False)),
    ("wide", "tf32x3"): (Tiles(16, 64, 4, held=False), Tiles(16, 32, 4, held=False)),
}
#: 16 nodes a panel; small chunks, as the panels of a row take registers. Four panels at once of wide layers
#: and exact products are 130,000 instructions, which compile for seven minutes; one is 26,000.
_PANELS = {
    ("narrow", "ieee"): (Tiles(64, 32, 4), Tiles(64, 64, 4), Tiles(64, 64, 8), Tiles(16, 32, 1)),
    ("narrow", "tf32"): (Tiles(64, 32, 4), Tiles(64, 64, 4), Tiles(64, 64, 8), Tiles(16, 32, 1)),
    ("wide", "ieee"): (Tiles(64, 64, 8), Tiles(64, 64, 4)),
    ("wide", "tf32"): (Tiles(64, 64, 8), Tiles(64, 64, 4)),
    ("wide", "bf16x6"): (Tiles(16, 64, 8), Tiles(16, 64, 4)),
}
#: Primal and tangent of a chain.
_FLOW = {
    ("narrow", "ieee"): (Tiles(32, 128, 8), Tiles(64, 64, 4), Tiles(32, 64, 4), Tiles(16, 64, 4)),
    ("narrow", "tf32"): (Tiles(32, 128, 8), Tiles(64, 64, 4), Tiles(32, 64, 4), Tiles(16, 64, 4)),
    ("wide", "ieee"): (Tiles(16, 64, 4), Tiles(32, 64, 8)),
    ("wide", "tf32"): (Tiles(16, 64, 4), Tiles(32, 64, 8)),
}
HEAD = {
    "score_head": _ROWS,
    "csm_loss": _PASS,
    "langevin": _CHAIN,
    "langevin_draw": _CHAIN,
    "conditional_density": _PANELS,
    "probability_flow": _FLOW,
}
#: By bytes of an element and precision of the products.
LINEAR = {
    (2, "ieee"): (Linear(128, 128, 64, 8, 3), Linear(128, 64, 64, 4, 3), Linear(128, 256, 64, 8, 3)),
    (4, "tf32"): (Linear(128, 128, 32, 8, 3), Linear(128, 64, 32, 4, 3), Linear(64, 64, 32, 4, 3)),
    (4, "tf32x3"): (Linear(64, 64, 32, 4, 3), Linear(128, 64, 32, 8, 2), Linear(64, 64, 16, 4, 3)),
    (8, "ieee"): (Linear(64, 64, 16, 4, 2), Linear(128, 64, 16, 8, 2), Linear(64, 64, 32, 4, 2)),
}
#: In their place where at most FEW tiles of 128 x 128 would leave half of a large device idle.
LINEAR_FEW = {
    (2, "ieee"): (Linear(64, 64, 64, 4, 4), Linear(64, 64, 64, 4, 3), Linear(128, 64, 64, 4, 3)),
    (4, "tf32"): (Linear(64, 64, 32, 4, 4), Linear(64, 64, 32, 4, 3), Linear(128, 64, 32, 4, 3)),
}
FEW = 64
#: In their place where operands of matrix units take no registers.
LINEAR_WIDE = {
    (4, "tf32x3"): (Linear(128, 128, 32, 8, 2), Linear(128, 128, 16, 8, 2), Linear(64, 64, 32, 4, 3))
}

Key = tuple[Any, ...]


class Choices:
    """Which candidate is in force for each choice; one object for the process, so for autograd's threads too.

    Attributes:
        best: the candidates that are not the first of their list.
        asked: the choices met so far with their candidates, while someone wants to know; else None.
    """

    def __init__(self) -> None:
        self.best: dict[Key, Any] = {}
        self.asked: dict[Key, tuple[Any, ...]] | None = None

    def pick(self, key: Key, candidates: tuple[Any, ...]) -> tuple[Any, ...]:
        """The candidates that remain for one choice: the one in force alone, if tuning has settled on it."""
        if self.asked is not None:
            self.asked.setdefault(key, candidates)
        return (self.best[key],) if key in self.best else candidates


choices = Choices()


def precision_of(dtype: torch.dtype, exact: str = "ieee", full: bool = False) -> str:
    """``tl.dot``'s input_precision: for float32 ``exact`` if torch's setting is full float32, or ``full``."""
    if dtype is not torch.float32:
        return "ieee"
    return exact if full or of_products("cuda") == "float32" else "tf32"


def padded(size: int) -> int:
    """The next power of two, at least 16: a size that ``tl.dot`` takes."""
    return max(triton.next_power_of_2(size), 16)


def chunk(widths: Sequence[int]) -> int:
    """Columns of hidden units in a tensor: all of a layer up to 128, else 128 or 64, whichever pads less."""
    if max(widths) <= NARROW:
        return padded(max(widths))
    return min((128, 64), key=lambda block: sum(-(-width // block) * block for width in widths))


def head_candidates(
    op: str, precision: str, widths: tuple[int, ...], frequencies: int = 0
) -> tuple[Tiles, ...]:
    """How a kernel of ``op`` may be compiled; ops that HEAD does not name are compiled like csm_loss."""
    table = HEAD.get(op, _PASS)
    of_size = (
        ("small", "narrow") if max(widths) <= 64 else ("narrow",) if max(widths) <= NARROW else ("wide",)
    )
    of_precision = (precision, "tf32") if precision in ("tf32x3", "bf16x6") else (precision,)
    found = next(table[key] for key in product(of_size, of_precision) if key in table)
    if table is _PASS and frequencies > 0:
        # Sines and cosines take registers, as operands of mma.sync do, and the parts of exact products.
        most = 16 if precision == "tf32x3" else 64 if reads_along_the_sum() else 32
        found = tuple(tiles for tiles in found if tiles.rows <= most)
    return found


def shared_bytes() -> int:
    """Bytes of shared memory that a program may have on the current device."""
    driver = triton.runtime.driver.active
    return driver.utils.get_device_properties(driver.get_current_device())["max_shared_mem"]


def least_shared(op: str, dtype: torch.dtype, widths: Sequence[int]) -> int:
    """Bytes that the smallest configuration of ``op`` asks for; 0 for those that fit every device.

    A pass that sums gradients by exact products holds (ga, gt) of a whole layer in two parts, for 16 rows.
    """
    if op not in ("csm_loss", "score_head_backward") or precision_of(dtype, "tf32x3") != "tf32x3":
        return 0
    block = min(chunk(widths), 64)
    return 2 * dtype.itemsize * (32 * block * max(-(-width // block) for width in widths) + block * block)


@cache
def head_spec(
    tiles: Tiles,
    context: int,
    given: int,
    frequencies: int,
    widths: tuple[int, ...],
    activation: str,
    precision: str,
    preconditioned: bool = False,
) -> Spec:
    """The constants of a kernel that is compiled as ``tiles`` has it."""
    chunks = min(chunk(widths), tiles.chunk), min(chunk(widths), tiles.first)
    features = min(padded(given), CONTEXT_CHUNK), padded(frequencies)
    depth, stride = len(widths), context + 1 + 2 * frequencies
    sizes = tiles.rows, *chunks, *features, depth, stride
    row = given + preconditioned
    head = context, given, row, frequencies, widths, activation, precision
    return Spec(*head, *sizes, tiles.held, preconditioned)


def reads_along_the_sum() -> bool:
    """Whether matrix units read float32 in shared memory along the sum only, as wgmma and tcgen05 do."""
    target = current_target()
    return target is not None and target.backend == "cuda" and target.arch // 10 in (9, 10)


def linear_precision(dtype: torch.dtype) -> str:
    """Of a masked layer's products: exact ones are three of tensor cores, added up in float32."""
    return precision_of(dtype, "tf32x3")


def linear_config(kernel: str, dtype: torch.dtype, rows: int, columns: int) -> Linear:
    """The configuration of a kernel of ``masked_linear`` whose result has ``rows`` and ``columns``."""
    kind = dtype.itemsize, linear_precision(dtype)
    few = triton.cdiv(rows, 128) * triton.cdiv(columns, 128) <= FEW
    other = LINEAR_FEW if few else LINEAR_WIDE if reads_along_the_sum() else {}
    return choices.pick((kernel, dtype, kind, columns, few), other.get(kind, LINEAR[kind]))[0]
