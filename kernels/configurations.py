"""How each kernel is compiled: candidates for every op, dtype and size, of which the first is the default.

``tuning.tune`` times the candidates of a call and has the fastest used for the rest of the process; nothing
else ever changes which one is used, so that equal calls give equal bits.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from triton.language.target_info import current_target

#: Most sums of gradients a program holds in registers, in elements of float32.
RESIDENT_ELEMENTS = 4 * 1024
#: Most columns of the context in one product.
CONTEXT_CHUNK = 64
#: Widths up to which a head counts as narrow.
NARROW = 128


class Head(NamedTuple):
    """A candidate for a kernel of the head: rows of a tile, most hidden units in a chunk, and warps."""

    rows: int
    chunk: int
    warps: int


class Linear(NamedTuple):
    """A candidate for the kernels of a masked layer: tiles (bm, bn), steps of bk along the sum."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


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


_ROWS = {
    ("narrow", 2): (Head(64, 128, 4), Head(64, 64, 4), Head(64, 128, 8)),
    ("narrow", 4): (Head(64, 64, 4), Head(64, 64, 8), Head(64, 128, 8)),
    ("wide", 2): (Head(64, 64, 4), Head(64, 64, 8)),
    ("wide", 4): (Head(64, 64, 4), Head(64, 64, 8)),
}
_PASS = {
    ("narrow", 2): (Head(64, 64, 4), Head(64, 64, 8), Head(32, 64, 4)),
    ("narrow", 4): (Head(64, 64, 4), Head(64, 64, 8), Head(32, 64, 4)),
    ("wide", 2): (Head(64, 64, 4), Head(64, 64, 8)),
    ("wide", 4): (Head(64, 64, 4), Head(64, 64, 8)),
}
#: A chain's time is the latency of its steps: few rows, and their columns spread over warps.
_CHAIN = {
    ("narrow", 2): (Head(16, 64, 4), Head(16, 128, 8), Head(32, 128, 8), Head(16, 32, 1)),
    ("narrow", 4): (Head(16, 64, 4), Head(16, 128, 8), Head(32, 128, 8), Head(16, 32, 1)),
    ("wide", 2): (Head(16, 64, 4), Head(16, 64, 8)),
    ("wide", 4): (Head(16, 64, 4), Head(16, 64, 8)),
}
#: 16 nodes a panel; small chunks, as the panels of a row take registers.
_PANELS = {
    ("narrow", 2): (Head(64, 32, 4), Head(64, 64, 4), Head(64, 64, 8), Head(16, 32, 1)),
    ("narrow", 4): (Head(64, 32, 4), Head(64, 64, 4), Head(64, 64, 8), Head(16, 32, 1)),
    ("wide", 2): (Head(64, 64, 8), Head(64, 64, 4)),
    ("wide", 4): (Head(64, 64, 8), Head(64, 64, 4)),
}
#: Primal and tangent of a chain.
_FLOW = {
    ("narrow", 2): (Head(32, 128, 8), Head(64, 64, 4), Head(32, 64, 4), Head(16, 64, 4)),
    ("narrow", 4): (Head(32, 128, 8), Head(64, 64, 4), Head(32, 64, 4), Head(16, 64, 4)),
    ("wide", 2): (Head(16, 64, 4), Head(32, 64, 8)),
    ("wide", 4): (Head(16, 64, 4), Head(32, 64, 8)),
}
#: For each op, by size class of the head and bytes of an element.
HEAD = {
    "score_head": _ROWS,
    "csm_loss": _PASS,
    "langevin": _CHAIN,
    "langevin_draw": _CHAIN,
    "conditional_density": _PANELS,
    "probability_flow": _FLOW,
}
#: In the place of others where float32 is exact: products of three parts take twice the shared memory.
EXACT = {
    ("csm_loss", "narrow"): (Head(32, 32, 4), Head(16, 32, 4)),
    ("csm_loss", "wide"): (Head(16, 64, 4), Head(16, 32, 4)),
    ("langevin", "wide"): (Head(16, 32, 4), Head(16, 32, 8)),
    ("langevin_draw", "wide"): (Head(16, 32, 4), Head(16, 32, 8)),
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

    def pick(self, key: Key, candidates: tuple[Any, ...]) -> Any:
        """The candidate in force for one choice."""
        if self.asked is not None:
            self.asked.setdefault(key, candidates)
        return self.best.get(key, candidates[0])


choices = Choices()


def precision_of(dtype: torch.dtype, exact: str = "ieee", full: bool = False) -> str:
    """``tl.dot``'s input_precision: for float32 ``exact`` if torch's setting is "highest" or ``full``."""
    if dtype is not torch.float32:
        return "ieee"
    return exact if full or torch.get_float32_matmul_precision() == "highest" else "tf32"


def padded(size: int) -> int:
    """The next power of two, at least 16: a size that ``tl.dot`` takes."""
    return max(triton.next_power_of_2(size), 16)


def chunk(widths: Sequence[int]) -> int:
    """Columns of hidden units in a tensor: all of a layer up to 128, else 128 or 64, whichever pads less."""
    if max(widths) <= NARROW:
        return padded(max(widths))
    return min((128, 64), key=lambda block: sum(-(-width // block) * block for width in widths))


def head_config(
    op: str, dtype: torch.dtype, context: int, frequencies: int, widths: tuple[int, ...]
) -> Config:
    """The configuration of ``op`` for one head; ops that HEAD does not name are compiled like csm_loss."""
    size = "narrow" if max(widths) <= NARROW else "wide"
    like = op if op in HEAD else "csm_loss"
    candidates = HEAD[like][size, 2 if dtype.itemsize == 2 else 4]
    if dtype is torch.float32 and precision_of(dtype) == "ieee":
        candidates = EXACT.get((like, size), candidates)
    key = op, dtype, precision_of(dtype), context, frequencies, widths
    found = choices.pick(key, candidates)
    block = min(chunk(widths), found.chunk)
    full = [-(-width // block) * block for width in widths]
    features = min(padded(context), CONTEXT_CHUNK), padded(frequencies)
    sums = full[0] * (context + 2 * features[1] * (frequencies > 0))
    sums += sum(i * o for i, o in pairwise(full))
    return Config((found.rows, block, *features), found.warps, sums <= RESIDENT_ELEMENTS)


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
    return choices.pick((kernel, dtype, kind, columns, few), other.get(kind, LINEAR[kind]))
