"""Autograd of an op that returns a scalar loss and all its gradients in one pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.rescale import rescale as _reference
from .library import choice, differentiable, is_batched, once, under
from .rescale import rescale

#: (activation, need, *tensors) -> the loss, and for each tensor its gradient or None.
Evaluate = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]


class _ScalarLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, evaluate, activation, need, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.evaluate, ctx.activation, ctx.need, ctx.choice = evaluate, activation, need, choice()
        loss, ctx.grads = evaluate(activation, need, *tensors)
        return loss

    @staticmethod
    @once
    def backward(ctx: Any, upstream):
        grads = ctx.grads or _again(ctx)
        if torch.compiler.is_compiling() or is_batched(upstream):
            grads = [None if grad is None else grad * upstream for grad in grads]
        else:
            ctx.grads = None
            own = [grad for grad in grads if grad is not None]
            if not upstream.is_cpu:
                under(ctx.choice, rescale, own, upstream)
            elif upstream.item() != 1.0:
                _reference(own, upstream)
        return None, None, None, *grads


def _again(ctx: Any) -> Sequence[Tensor | None]:
    """The gradients once more, for a second backward pass: the first one gave its tensors away."""
    return under(ctx.choice, ctx.evaluate, ctx.activation, ctx.need, *ctx.saved_tensors)[1]


def scalar_loss(evaluate: Evaluate, activation: str, need: tuple[bool, ...], *tensors: Tensor) -> Tensor:
    """The loss of ``evaluate``, differentiable once; the backward pass scales its gradients."""
    return differentiable(_ScalarLoss, evaluate, activation, need, *tensors)
