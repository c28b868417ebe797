"""Rows carried between noise levels along the probability flow."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..ops import probability_flow as op
from ..reference.network import Head
from . import arguments


class Flow(NamedTuple):
    """Results of :func:`probability_flow`, each of the shape of x."""

    point: Tensor
    change: Tensor
    error: Tensor


def probability_flow(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    sigma_from: float,
    sigma_to: float,
    tolerance: float | None = None,
    change: bool = True,
    squash: float | None = None,
) -> Flow:
    """Carry x between noise levels along the probability flow dx / d ln(sigma) = -sigma^2 s(c, x, sigma).

    The head is conditional: log sigma is its last context feature and its output is sigma s. With ``squash``
    it is preconditioned, x is v, and the flow is dv / d theta = -r. Every row takes
    steps of its own, of order 5 with an error estimate. Products of float32 are in full float32, whatever
    ``torch.set_float32_matmul_precision`` says. Not differentiable.

    Args:
        context: (..., C), without log sigma; with ``squash`` with -ln(tau), tau being the row's scale, in its
            place: the rows' own levels are sigma / tau.
        x: (...).
        weights, biases, activation, frequencies: as for :func:`score_head`, with C + 1 context features,
            or C with ``squash``.
        sigma_from, sigma_to: positive noise levels; the flow back is the flow with the two exchanged.
        tolerance: largest estimated error of a step, in x as a part of sigma and in log p; by default 1e-7 in
            float64 and 1e-4 otherwise.
        change: follow log p too; False costs half.
        squash: u0 of a preconditioned head (:mod:`fastcsm.reference.preconditioning`), None for a plain one.

    Returns:
        :class:`Flow`: ``point``; ``change``, log p_to(point) - log p_from(x) in nats, by the exact derivative
        of the score; and ``error``, the sum over steps of the estimated errors; of the dtype of x, float32
        for 16-bit dtypes. A row that needs more than 500 steps is NaN, its error inf.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    head = Head(weights, biases, frequencies, activation)
    squash = arguments.squash_of(squash)
    rows, head = arguments.rows(context, x, head, int(not squash), wide=True)
    levels = arguments.positive("sigma_from", sigma_from), arguments.positive("sigma_to", sigma_to)
    found = op.probability_flow(
        *rows.flat(), *head, *levels, arguments.tolerance(tolerance, rows.x), bool(change), squash
    )
    return Flow._make(value.reshape(x.shape) for value in found)
