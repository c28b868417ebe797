"""Autograd of an op that returns a scalar loss and all its gradients in one pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.rescale import rescale as _reference
from .library import choice, differentiable, is_batched, once, unbatched, under
from .rescale import rescale

#: (activation, need, scale, *tensors) -> the loss, and for each tensor its gradient or None; both times the
#: number ``scale`` where that is not None.
Evaluate = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]


class _ScalarLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, evaluate, activation, need, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.evaluate, ctx.activation, ctx.need, ctx.choice = evaluate, activation, need, choice()
        # The gradients of a mean are below float16: what scales the loss must scale them before they round.
        ctx.late = tensors[0].dtype is torch.float16
        now = (False,) * len(need) if ctx.late else need
        loss, grads = evaluate(activation, now, None, *tensors)
        ctx.grads = None if ctx.late else grads
        return loss

    @staticmethod
    @once
    def backward(ctx: Any, upstream):
        if ctx.late:
            unbatched(upstream)
            return None, None, None, *_again(ctx, upstream)
        grads = ctx.grads or _again(ctx)
        if torch.compiler.is_compiling() or _stands_for(upstream):
            grads = [None if grad is None else grad * upstream for grad in grads]
        else:
            ctx.grads = None
            if not upstream.is_cpu or upstream.item() != 1.0:
                own = [grad for grad in grads if grad is not None]
                under(ctx.choice, _reference if upstream.is_cpu else rescale, own, upstream)
        return None, None, None, *grads


def _again(ctx: Any, scale: Tensor | None = None) -> Sequence[Tensor | None]:
    """The gradients once more, for a second backward pass: the first one gave its tensors away."""
    return under(ctx.choice, ctx.evaluate, ctx.activation, ctx.need, scale, *ctx.saved_tensors)[1]


def _stands_for(upstream: Tensor) -> bool:
    """Whether it is of a subclass, traced, or many at once, and is no number to look at."""
    if type(upstream) is not Tensor or is_batched(upstream):
        return True
    modes = torch._C._len_torch_dispatch_stack()
    return modes > 0 and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def times(scale: Tensor | None, coefficients: Sequence[Tensor]) -> Sequence[Tensor]:
    """The coefficients of a loss that is scaled."""
    return coefficients if scale is None else [coefficient * scale for coefficient in coefficients]


def scalar_loss(evaluate: Evaluate, activation: str, need: tuple[bool, ...], *tensors: Tensor) -> Tensor:
    """The loss of ``evaluate``, differentiable once; the backward pass scales its gradients."""
    return differentiable(_ScalarLoss, evaluate, activation, need, *tensors)
