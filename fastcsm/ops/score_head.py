"""score_head: schema, fake and autograd."""

from typing import Any

import torch
from torch import Tensor

from ..reference.network import Head
from .library import (
    Shaped,
    choice,
    define,
    differentiable,
    for_autograd,
    halves,
    needs_grad,
    once,
    unbatched,
    under,
)


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


_forward = define(
    "score_head(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, bool derivative) -> (Tensor, Tensor)",
    _fake,
    shaped=Shaped(0, (1,), ((0, 1), (1, 1))),
)
_backward = define(
    "score_head_backward(Tensor grad_score, Tensor grad_derivative, Tensor context, Tensor x,"
    " Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " bool need_context, bool need_x, bool need_params) -> (Tensor, Tensor, Tensor[], Tensor[])",
    lambda grad_score, grad_derivative, *args: fake_grads(*args[:4], *args[-3:]),
    shaped=Shaped(2, (3, 0, 1), ((0, 2), (1, 3))),
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
        unbatched(grad_score, grad_derivative)
        context, x, frequencies, *params = ctx.saved_tensors
        need = *ctx.needs_input_grad[:2], any(ctx.needs_input_grad[5:])
        if not ctx.derivative:
            grad_derivative = torch.zeros_like(x)
        upstream = grad_score.contiguous(), grad_derivative.contiguous()
        head = *halves(params), frequencies, ctx.activation
        grads = under(ctx.choice, _backward, *upstream, context, x, *head, *need)
        return for_autograd(grads, need, 3, len(params))


def score_head(context: Tensor, x: Tensor, head: Head, derivative: bool = True) -> tuple[Tensor, Tensor]:
    """:func:`fastcsm.reference.score_head.score_head` of rows (..., C) and (...); differentiable once."""
    params = (*head.weights, *head.biases)
    if needs_grad(context, x, *params):
        options = head.frequencies, head.activation, derivative
        return differentiable(_ScoreHead, context, x, *options, *params)
    return _forward(context, x, *head, derivative)
