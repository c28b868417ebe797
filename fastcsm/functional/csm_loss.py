"""The composite score matching loss of rows."""

from collections.abc import Sequence

from torch import Tensor

from ..ops import csm_loss as op
from ..ops.library import needs_grad
from ..ops.score_head import score_head
from ..reference.network import Head
from . import arguments
from .arguments import Coefficient, Rows


def csm_loss(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    alpha: Coefficient = None,
    beta: Coefficient = None,
    gamma: Coefficient = None,
) -> Tensor:
    """Composite score matching loss, the sum over rows of alpha s^2 / 2 + beta s' + gamma s (Eq. 5).

    The loss and all gradients are computed in one pass that keeps no activation; of float16 the gradients in
    one of their own, so that what scales the loss scales them before they are rounded (torch.amp.GradScaler).
    With a coefficient that requires a gradient the loss is formed from :func:`score_head` instead. On
    processors, tiles of rows whose beta is 0, as in denoising score matching, cost half the operations.

    Args:
        context, x, weights, biases, activation, frequencies: as for :func:`score_head`.
        alpha, beta, gamma: numbers, or tensors that broadcast to x; 1, 1 and 0 by default.

    Returns:
        The scalar loss, in the dtype of x (float32 for 16-bit dtypes).

    Raises:
        TypeError, ValueError: as for :func:`score_head`.
    """
    return of_head(context, x, Head(weights, biases, frequencies, activation), alpha, beta, gamma)


def of_head(
    context: Tensor, x: Tensor, head: Head, alpha: Coefficient, beta: Coefficient, gamma: Coefficient
) -> Tensor:
    """:func:`csm_loss` of a head's layers in one."""
    rows, head = arguments.rows(context, x, head)
    return of_rows(rows, head, arguments.coefficients(alpha, beta, gamma, x))


def of_rows(rows: Rows, head: Head, coefficients: list[Tensor]) -> Tensor:
    """The loss of checked rows."""
    if needs_grad(*coefficients):
        a, b, g = coefficients
        s, ds = (output.reshape(-1).to(a.dtype) for output in score_head(*rows, head))
        return (a * s * s / 2 + b * ds + g * s).sum()
    return op.csm_loss(*rows, head, coefficients)
