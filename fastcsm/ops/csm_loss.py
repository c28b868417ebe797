"""csm_loss: schema, fake and autograd. The forward pass computes the gradients, the backward scales them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.network import Head
from .library import Shaped, define, for_autograd, halves
from .scalar_loss import scalar_loss, times
from .score_head import fake_grads


def _fake(context, x, weights, biases, frequencies, activation, alpha, *rest):
    return (alpha.new_empty(()), *fake_grads(context, x, weights, biases, *rest[-3:]))


_forward = define(
    "csm_loss(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, Tensor alpha, Tensor beta, Tensor gamma,"
    " bool need_context, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    _fake,
    shaped=Shaped(0, (1,), ((1, 0), (2, 1))),
)


def _evaluate(activation, need, scale, context, x, frequencies, *rest):
    coefficients, params = times(scale, rest[:3]), rest[3:]
    head = *halves(params), frequencies, activation
    loss, *grads = _forward(context, x, *head, *coefficients, *need)
    return loss, for_autograd(grads, need, 4, len(params))


def csm_loss(context: Tensor, x: Tensor, head: Head, coefficients: Sequence[Tensor]) -> Tensor:
    """:func:`fastcsm.reference.csm_loss.csm_loss` of rows (..., C) and (...); differentiable once in them.

    ``coefficients`` are (alpha, beta, gamma).
    """
    params = (*head.weights, *head.biases)
    need = (context.requires_grad, x.requires_grad, True in [p.requires_grad for p in params])
    if torch.is_grad_enabled() and any(need):
        tensors = context, x, head.frequencies, *coefficients, *params
        return scalar_loss(_evaluate, head.activation, need, *tensors)
    return _forward(context, x, *head, *coefficients, False, False, False)[0]
