"""The score of a head, with or without its derivative."""

from collections.abc import Sequence

from torch import Tensor

from ..ops import score_head as op
from ..reference.network import Head
from . import arguments


def score_head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score s(c, x) of a head and its derivative s' = ds/dx, in one pass.

    Args:
        context: (..., C).
        x: (...).
        weights: K + 1 matrices in nn.Linear's layout, (H_1, C + 1 + 2E), (H_2, H_1), ..., (1, H_K), K >= 1.
        biases: K + 1 vectors (H_1,), ..., (1,); None stands for zeros.
        activation: "softplus", "tanh", "silu", "gelu" (tanh form), "elu", "relu" or "sigmoid".
        frequencies: (E,), or None for no frequencies.

    Returns:
        s and s', each of the shape and dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    head = Head(weights, biases, frequencies, activation)
    rows, head = arguments.rows(context, x, head)
    return op.score_head(*rows, head)


def score(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
) -> Tensor:
    """The score alone, at half the operations of :func:`score_head`, whose arguments it takes.

    Returns:
        s, of the shape and dtype of x.
    """
    head = Head(weights, biases, frequencies, activation)
    rows, head = arguments.rows(context, x, head)
    return op.score_head(*rows, head, derivative=False)[0]
