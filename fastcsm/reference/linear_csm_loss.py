"""linear_csm_loss: the last masked layer and the composite score matching loss together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .csm_loss import csm_loss
from .masked_linear import masked_linear, masked_linear_backward_into


class Kernels(NamedTuple):
    """The ops that :func:`linear_csm_loss` chains, of one backend."""

    masked_linear: Callable[..., Any]
    masked_linear_backward_into: Callable[..., Any]
    csm_loss: Callable[..., Any]


def linear_csm_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    extra: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    need_hidden: bool,
    need_linear: bool,
    need_x: bool,
    need_params: bool,
    *,
    linear_grads: tuple[Tensor, Tensor] | None = None,
    kernels: Kernels = Kernels(masked_linear, masked_linear_backward_into, csm_loss),  # noqa: B008 (immutable)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The csm_loss of contexts [row d of (W * M) h + b, extra], and its gradients.

    Args:
        hidden, weight, bias, in_degrees, out_degrees: of the masked layer, (B, H), (D * C, H), (D * C,), (H,)
            and (D * C,); outputs d C ... (d + 1) C are the context of dimension d.
        extra, x: further context features, (B * S * D, X), X >= 0, which get no gradient; and (B * S * D,),
            S values of every variable, which have one context.
        weights, biases, frequencies, activation, alpha, beta, gamma: as for
            :func:`fastcsm.reference.csm_loss.csm_loss`, with C + X context features.
        need_hidden, need_linear, need_x, need_params: which gradients to compute; need_linear means those of
            weight and bias.
        linear_grads: where those of weight and bias go, contiguous; fresh tensors by default.
        kernels: the functions that are chained.

    Returns:
        (loss, grad_hidden, grad_weight, grad_bias, grad_x, grad_weights, grad_biases), empty if not needed.
    """
    c = context_features(extra, weights, frequencies)
    head = weights, biases, frequencies, activation
    y, none = kernels.masked_linear(hidden, weight, bias, in_degrees, out_degrees, "identity")
    batch, draws = len(hidden), max(len(x) * c // max(y.numel(), 1), 1)
    context = (y.unsqueeze(1).expand(-1, draws, -1) if draws > 1 else y).reshape(len(x), c)
    if extra.shape[1] > 0:
        context = torch.cat([context, extra], 1)
    need = need_hidden or need_linear, need_x, need_params
    loss, grad_context, grad_x, *grad_params = kernels.csm_loss(context, x, *head, alpha, beta, gamma, *need)
    if linear_grads is None:
        like = (weight, bias) if need_linear else (weight.new_empty(0), bias.new_empty(0))
        linear_grads = torch.empty_like(like[0]), torch.empty_like(like[1])
    grad_hidden = hidden.new_empty(0)
    if need[0]:
        grad_y = grad_context[:, :c].reshape(batch, draws, len(weight))
        grad_y = grad_y.sum(1) if draws > 1 else grad_y[:, 0].contiguous()
        grad_hidden = kernels.masked_linear_backward_into(
            grad_y, none, hidden, weight, in_degrees, out_degrees, "identity", need_hidden, *linear_grads
        )
    return loss, grad_hidden, *linear_grads, grad_x, *grad_params


def context_features(extra: Tensor, weights: Sequence[Tensor], frequencies: Tensor) -> int:
    """C, the context features that the masked layer computes for each dimension."""
    return weights[0].shape[1] - 1 - 2 * frequencies.shape[0] - extra.shape[1]
