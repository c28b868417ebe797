"""masked_linear: schema, fake and autograd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .library import choice, define, differentiable, needs_grad, once, under


def _fake(x, weight, bias, in_degrees, out_degrees, activation):
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, x.new_empty(0) if activation == "identity" else torch.empty_like(y)


def _fake_backward(grad_y, preactivation, x, weight, *rest):
    need_x, need_weight, need_bias = rest[-3:]
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(weight) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0]) if need_bias else x.new_empty(0),
    )


def _request(x: Tensor, weight: Tensor) -> backends.Request:
    rows = 1 << max(len(x) - 1, 0).bit_length()
    return backends.Request(x.device.type, x.dtype, (weight.shape[0],), weight.shape[1], rows)


_forward = define(
    "masked_linear(Tensor x, Tensor weight, Tensor bias, Tensor in_degrees, Tensor out_degrees,"
    " str activation) -> (Tensor, Tensor)",
    _fake,
    lambda args: _request(args[0], args[1]),
)
_backward = define(
    "masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight,"
    " Tensor in_degrees, Tensor out_degrees, str activation,"
    " bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda args: _request(args[2], args[3]),
)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, in_degrees, out_degrees, activation):
        y, preactivation = _forward(x, weight, bias, in_degrees, out_degrees, activation)
        ctx.save_for_backward(preactivation, x, weight, in_degrees, out_degrees)
        ctx.activation, ctx.choice = activation, choice()
        return y

    @staticmethod
    @once
    def backward(ctx: Any, grad_y):
        needs = ctx.needs_input_grad[:3]
        grads = under(ctx.choice, _backward, grad_y.contiguous(), *ctx.saved_tensors, ctx.activation, *needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None


class Layer(NamedTuple):
    """A masked layer and its input, in the order the ops take them: (B, I), (O, I), (O,), (I,) and (O,)."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    in_degrees: Tensor
    out_degrees: Tensor


def masked_linear(layer: Layer, activation: str) -> Tensor:
    """The y of :func:`fastcsm.reference.masked_linear.masked_linear`; differentiable once."""
    if needs_grad(*layer[:3]):
        return differentiable(_MaskedLinear, *layer, activation)
    return _forward(*layer, activation)[0]
