"""csm_loss: schema, fake and autograd. The forward pass computes the gradients, the backward scales them."""

import torch
from torch import Tensor

from .library import define
from .scalar_loss import scalar_loss
from .score_head import fake_grads


def _fake(context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *need):
    return (alpha.new_empty(()), *fake_grads(context, x, weights, biases, *need))


_forward = define(
    "csm_loss(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, Tensor alpha, Tensor beta, Tensor gamma,"
    " bool need_context, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    _fake,
)


def _evaluate(activation, need, context, x, frequencies, alpha, beta, gamma, *params):
    layers = len(params) // 2
    weights, biases = list(params[:layers]), list(params[layers:])
    loss, grad_context, grad_x, grad_weights, grad_biases = _forward(
        context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *need
    )
    need_context, need_x, need_params = need
    return loss, [
        grad_context if need_context else None,
        grad_x if need_x else None,
        *[None] * 4,
        *([*grad_weights, *grad_biases] if need_params else [None] * len(params)),
    ]


def csm_loss(
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
) -> Tensor:
    """The loss of :func:`fastcsm.reference.csm_loss.csm_loss`; differentiable once in the head's inputs."""
    params = (*weights, *biases)
    need = (context.requires_grad, x.requires_grad, any(p.requires_grad for p in params))
    if torch.is_grad_enabled() and any(need):
        return scalar_loss(_evaluate, activation, need, context, x, frequencies, alpha, beta, gamma, *params)
    none = (False, False, False)
    return _forward(context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *none)[0]
