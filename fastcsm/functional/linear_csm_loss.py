"""The composite score matching loss of contexts that a masked linear layer computes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import linear_csm_loss as op
from ..ops.library import needs_grad
from ..ops.masked_linear import masked_linear
from ..reference.network import Head
from . import arguments
from .arguments import Coefficient, Rows
from .csm_loss import of_rows


def linear_csm_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    extra: Tensor | None = None,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    alpha: Coefficient = None,
    beta: Coefficient = None,
    gamma: Coefficient = None,
) -> Tensor:
    """:func:`csm_loss` of contexts that a masked linear layer computes, block of dimensions by block.

    The context of dimension d is [rows d C ... (d + 1) C of (W * M) h + b, extra_d]. It is computed and used
    up in blocks of 4 MiB on a processor, of 256 MiB elsewhere, and so is its gradient.

    Args:
        hidden: (..., H), the input h of the masked layer.
        weight: (D * C, H).
        bias: (D * C,), or None for zeros.
        in_degrees, out_degrees: (H,) and (D * C,) int64, as for :func:`masked_linear`.
        x: (..., D), or (..., S, D), S values of every variable, all with its one context.
        weights, biases, activation, frequencies: as for :func:`score_head`, with C + X context features.
        extra: of the shape of x and (X,), further context features, or None for X = 0.
        alpha, beta, gamma: as for :func:`csm_loss`. If one of them or ``extra`` requires a gradient, the
            context is formed as a whole.

    Returns:
        The scalar loss, in the dtype of x (float32 for 16-bit dtypes).

    Raises:
        TypeError, ValueError: as for :func:`masked_linear` and :func:`score_head`.
    """
    given = hidden, weight, bias, x, extra, weights, biases, frequencies
    hidden, weight, bias, x, extra, weights, biases, frequencies = arguments.autocast(*given)
    layer = arguments.masked("hidden", hidden, weight, bias, in_degrees, out_degrees)
    extra, features = _features(hidden, weight, x, extra)
    head = Head(weights, biases, frequencies, activation)
    head = arguments.layers(hidden, features + extra.shape[-1], head)
    coefficients = arguments.coefficients(alpha, beta, gamma, x)
    rows = Rows(extra.contiguous(), x.contiguous()).flat()
    if needs_grad(*coefficients, extra):
        y = masked_linear(layer, "identity")
        if x.numel() * features > y.numel():
            y = y.unsqueeze(1).expand(-1, x.numel() * features // y.numel(), -1)
        y = y.reshape(x.numel(), features)
        return of_rows(Rows(torch.cat([y, rows.context], 1), rows.x), head, coefficients)
    return op.linear_csm_loss(layer, *rows, head, coefficients)


def _features(hidden: Tensor, weight: Tensor, x: Tensor, extra: Tensor | None) -> tuple[Tensor, int]:
    """Further features of x, and how many the layer computes for each dimension."""
    arguments.like("x", x, hidden, None)
    leading = hidden.shape[:-1]
    if x.dim() == 0 or leading not in (x.shape[:-1], x.shape[:-2]) or x.shape[-1] == 0:
        raise ValueError(
            "x must have shape (..., D) or (..., S, D) with D >= 1 and the leading axes of hidden,"
            f" {tuple(hidden.shape)}, got {tuple(x.shape)}"
        )
    features = weight.shape[0] // x.shape[-1]
    if features == 0 or weight.shape[0] != features * x.shape[-1]:
        raise ValueError(
            f"weight must have D * C rows, a positive multiple of x's {x.shape[-1]} dimensions,"
            f" got {weight.shape[0]}"
        )
    extra = x.new_empty(*x.shape, 0) if extra is None else extra
    arguments.like("extra", extra, hidden, x.dim() + 1)
    arguments.shape("extra", extra, (*x.shape, extra.shape[-1]))
    return extra, features
