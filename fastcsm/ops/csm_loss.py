"""csm_loss: schema, fake and autograd. The forward pass computes the gradients, the backward scales them."""

from typing import Any

import torch
from torch import Tensor

from .library import choice, define, once, under
from .score_head import fake_grads, needs_grad


def _fake(context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *need):
    return (alpha.new_empty(()), *fake_grads(context, x, weights, biases, *need))


_forward = define(
    "csm_loss(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, Tensor alpha, Tensor beta, Tensor gamma,"
    " bool need_context, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    _fake,
)


class _CSMLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context, x, frequencies, activation, alpha, beta, gamma, need, *params):
        ctx.save_for_backward(context, x, frequencies, alpha, beta, gamma, *params)
        ctx.activation, ctx.need, ctx.choice = activation, need, choice()
        loss, ctx.grads = _evaluate(context, x, frequencies, activation, alpha, beta, gamma, need, *params)
        return loss

    @staticmethod
    @once
    def backward(ctx: Any, upstream):
        grads = ctx.grads or _again(ctx)
        if torch.compiler.is_compiling():
            grads = [grad * upstream for grad in grads]
        else:
            ctx.grads = None
            if upstream.device.type != "cpu" or upstream.item() != 1.0:
                grads = [grad.mul_(upstream) for grad in grads]
        need_context, need_x, need_params = ctx.need
        return (
            grads[0] if need_context else None,
            grads[1] if need_x else None,
            *[None] * 6,
            *(grads[2:] if need_params else [None] * (len(ctx.needs_input_grad) - 8)),
        )


def _evaluate(context, x, frequencies, activation, alpha, beta, gamma, need, *params):
    """The loss and the flat list of its gradients."""
    layers = len(params) // 2
    weights, biases = list(params[:layers]), list(params[layers:])
    loss, grad_context, grad_x, grad_weights, grad_biases = _forward(
        context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *need
    )
    return loss, [grad_context, grad_x, *grad_weights, *grad_biases]


def _again(ctx: Any) -> list[Tensor]:
    """The gradients once more, for a second backward pass: the first one gave its tensors away."""
    context, x, frequencies, *rest = ctx.saved_tensors
    return under(
        ctx.choice, _evaluate, context, x, frequencies, ctx.activation, *rest[:3], ctx.need, *rest[3:]
    )[1]


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
    if needs_grad(context, x, *weights, *biases):
        params = (*weights, *biases)
        need = (context.requires_grad, x.requires_grad, any(p.requires_grad for p in params))
        return _CSMLoss.apply(context, x, frequencies, activation, alpha, beta, gamma, need, *params)
    none = (False, False, False)
    return _forward(context, x, weights, biases, frequencies, activation, alpha, beta, gamma, *none)[0]
