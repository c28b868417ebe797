"""masked_linear: y = f((W * M) x + b), where the mask M follows from degrees."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import activations


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor, in_degrees: Tensor, out_degrees: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Linear layer in which the edge i -> o exists iff in_degrees[i] <= out_degrees[o].

    Args: as for :func:`fastcsm.functional.masked_linear`, none left out: x (B, I), and "identity" for no
        activation.

    Returns:
        y: (B, O), and the preactivation (B, O), which is empty for "identity".
    """
    a = F.linear(x, torch.where(mask(in_degrees, out_degrees), weight, 0), bias)
    if activation == "identity":
        return a, a.new_empty(0)
    return activations.get(activation).f(a), a


def mask(in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """The (O, I) boolean mask of the edges that exist."""
    return in_degrees <= out_degrees[:, None]


def masked_linear_backward(
    grad_y: Tensor,
    preactivation: Tensor,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(grad_y * y) with respect to x, weight and bias; empty where not needed.

    The gradient of the weight is exactly zero where no edge exists.
    """
    m = mask(in_degrees, out_degrees)
    grad = grad_y
    if activation != "identity":
        grad = grad_y * activations.get(activation).df(preactivation)
    empty = x.new_empty(0)
    return (
        grad @ torch.where(m, weight, 0) if need_x else empty,
        torch.where(m, grad.t() @ x, 0) if need_weight else empty.clone(),
        grad.sum(0) if need_bias else empty.clone(),
    )


def masked_linear_backward_into(*args: Any) -> Tensor:
    """grad_x of :func:`masked_linear_backward`; the other gradients are written where the caller wants them.

    Args: as for it up to ``need_x``, then grad_weight and grad_bias, contiguous, overwritten; empty where not
        needed.
    """
    *given, grad_weight, grad_bias = args
    given += [grad_weight.numel() > 0, grad_bias.numel() > 0]
    grad_x, into_weight, into_bias = masked_linear_backward(*given)
    grad_weight.copy_(into_weight)
    grad_bias.copy_(into_bias)
    return grad_x
