"""A linear layer with the mask of an autoregressive network."""

from torch import Tensor

from .. import activations
from ..ops import masked_linear as op
from . import arguments


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    *,
    activation: str | None = None,
) -> Tensor:
    """f((W * M) x + b), with an edge from input i to output o iff in_degrees[i] <= out_degrees[o] (MADE).

    The gradient of the weight is exactly zero where there is no edge.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,), or None for zeros.
        in_degrees, out_degrees: (I,) and (O,) int64, in any order.
        activation: a name as for :func:`score_head`, or None for the identity.

    Returns:
        (..., O), in the dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    if activation is not None:
        activations.get(activation)
    x, weight, bias = arguments.autocast(x, weight, bias)
    layer = arguments.masked("x", x, weight, bias, in_degrees, out_degrees)
    y = op.masked_linear(layer, activation or "identity")
    return y.reshape(*x.shape[:-1], weight.shape[0])
