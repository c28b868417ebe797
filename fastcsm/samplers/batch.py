"""One batch of a draw, as both ways of drawing take it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples that are drawn together.

    Attributes:
        x: (B, D); the variables order[:known] are given, as contexts see them.
        samples: (B,) int64, their numbers.
        seed: in [0, 2^64).
        order: order[k] is the variable drawn k-th.
        known: how many are given.
        denoise: variance of the noise that the result is freed of; 0 for none.
        tell: called with the number of variables done, or None.
    """

    x: Tensor
    samples: Tensor
    seed: int
    order: list[int]
    known: int
    denoise: float
    tell: Callable[[int], None] | None
