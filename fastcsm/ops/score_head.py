"""score_head: schema, fake and autograd."""

from typing import Any

import torch
from torch import Tensor

from ..reference.network import Head
from .library import choice, define, differentiable, halves, needs_grad, once, under


def _fake(context, x, weights, biases, frequencies, activation, derivative):
    return torch.empty_like(x), torch.empty_like(x) if derivative else x.new_empty(0)


def fake_grads(context, x, weights, biases, need_context, need_x, need_params):
    """Gradients of the head's inputs as empty tensors of the right shapes."""
    return (
        torch.empty_like(context) if need_context else context.new_empty(0),
        torch.empty_like(x) if need_x else x.new_empty(0),
        [torch.empty_like(w) for w in weights] if need_params else [],
        [torch.empty_like(b) for b in biases] if need_params else [],
    )


def _fake_backward(gs, gd, context, x, weights, biases, *rest):
    return fake_grads(context, x, weights, biases, *rest[-3:])


_forward = define(
    "score_head(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, bool derivative) -> (Tensor, Tensor)",
    _fake,
)
_backward = define(
    "score_head_backward(Tensor grad_score, Tensor grad_derivative, Tensor context, Tensor x,"
    " Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " bool need_context, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor[], Tensor[])",
    _fake_backward,
)


class _ScoreHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context, x, frequencies, activation, derivative, *params):
        ctx.save_for_backward(context, x, frequencies, *params)
        ctx.activation, ctx.derivative, ctx.choice = activation, derivative, choice()
        s, ds = _forward(context, x, *halves(params), frequencies, activation, derivative)
        if not derivative:
            ctx.mark_non_differentiable(ds)
        return s, ds

    @staticmethod
    @once
    def backward(ctx: Any, grad_score, grad_derivative):
        context, x, frequencies, *params = ctx.saved_tensors
        needs = ctx.needs_input_grad
        need_params = any(needs[5:])
        if not ctx.derivative:
            grad_derivative = torch.zeros_like(x)
        grad_context, grad_x, grad_weights, grad_biases = under(
            ctx.choice,
            _backward,
            grad_score.contiguous(),
            grad_derivative.contiguous(),
            context,
            x,
            *halves(params),
            frequencies,
            ctx.activation,
            needs[0],
            needs[1],
            need_params,
        )
        return (
            grad_context if needs[0] else None,
            grad_x if needs[1] else None,
            None,
            None,
            None,
            *((*grad_weights, *grad_biases) if need_params else [None] * len(params)),
        )


def score_head(context: Tensor, x: Tensor, head: Head, derivative: bool = True) -> tuple[Tensor, Tensor]:
    """See :func:`fastcsm.reference.score_head.score_head`; differentiable once."""
    params = (*head.weights, *head.biases)
    if needs_grad(context, x, *params):
        options = head.frequencies, head.activation, derivative
        return differentiable(_ScoreHead, context, x, *options, *params)
    return _forward(context, x, *head, derivative)
