"""score_head: the score s(c, x) of N rows and its derivative s' = ds/dx, tangent written out by hand."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import activations
from .network import Head


def score_head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    derivative: bool = True,
) -> tuple[Tensor, Tensor]:
    """Score and derivative of every row; differentiable by autograd to any order.

        h = [c, x, sin(w x), cos(w x)]      a_1 = W_1 h + b_1                  t_1 = W_1 dh/dx
        z_k = f(a_k), u_k = f'(a_k) t_k     a_{k+1} = W_{k+1} z_k + b_{k+1}    t_{k+1} = W_{k+1} u_k

    Args:
        context: (N, C).
        x: (N,).
        weights: K + 1 matrices in nn.Linear's layout, (H_1, C + 1 + 2E), ..., (1, H_K).
        biases: K + 1 vectors, (H_1,), ..., (1,).
        frequencies: (E,), E may be 0. The phases w x are formed in float32 for 16-bit dtypes.
        activation: a name of :mod:`fastcsm.activations`.
        derivative: whether s' is wanted.

    Returns:
        s and s', each (N,); without the derivative s and an empty tensor.
    """
    if derivative:
        trace = forward(context, x, Head(weights, biases, frequencies, activation))
        return trace.score, trace.derivative
    f, (h, _, _) = activations.get(activation).f, _inputs(context, x, frequencies)
    a = F.linear(h, weights[0], biases[0])
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        a = F.linear(f(a), weight, bias)
    return a[:, 0], x.new_empty(0)


def with_features(context: Tensor, values: Sequence[float]) -> Tensor:
    """Contexts (N, C) and further features, the same in all rows: (N, C + len(values))."""
    columns = [context.new_full((len(context), 1), value) for value in values]
    return torch.cat([context, *columns], 1) if columns else context


class Trace(NamedTuple):
    """What the forward pass computes: inputs and their x-derivatives, and every layer's (a, t)."""

    inputs: tuple[Tensor, Tensor, Tensor]
    hidden: list[tuple[Tensor, Tensor]]
    score: Tensor
    derivative: Tensor


def forward(context: Tensor, x: Tensor, head: Head) -> Trace:
    """The forward pass of :func:`score_head`, with all it computes on the way."""
    weights, biases, frequencies, activation = head
    f = activations.get(activation)
    h, dh, d2h = _inputs(context, x, frequencies)
    a = F.linear(h, weights[0], biases[0])
    t = F.linear(dh, weights[0][:, context.shape[1] :])
    hidden = []
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden.append((a, t))
        z, u = f.f(a), f.df(a) * t
        a, t = F.linear(z, weight, bias), F.linear(u, weight)
    return Trace((h, dh, d2h), hidden, a[:, 0], t[:, 0])


def _inputs(context: Tensor, x: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h = [c, x, sin(w x), cos(w x)], and dh/dx and d2h/dx2 of the part after c."""
    dtype = x.dtype
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    x = x[:, None]
    w = frequencies.to(wide)
    sin, cos = torch.sin(x.to(wide) * w), torch.cos(x.to(wide) * w)
    h = torch.cat([context, x, sin.to(dtype), cos.to(dtype)], 1)
    dh = torch.cat([torch.ones_like(x), (w * cos).to(dtype), (-w * sin).to(dtype)], 1)
    d2h = torch.cat([torch.zeros_like(x), (-w * w * sin).to(dtype), (-w * w * cos).to(dtype)], 1)
    return h, dh, d2h


def score_head_backward(
    grad_score: Tensor,
    grad_derivative: Tensor,
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    need_context: bool,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gradients of the sum over rows of grad_score * s + grad_derivative * s'.

    Returns:
        (grad_context, grad_x, grad_weights, grad_biases); what is not needed is an empty tensor or list.
    """
    head = Head(weights, biases, frequencies, activation)
    trace = forward(context, x, head)
    return backward((grad_score, grad_derivative), trace, head, (need_context, need_x, need_params))


def backward(
    upstream: tuple[Tensor, Tensor], trace: Trace, head: Head, need: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The reverse pass of :func:`score_head_backward` through the trace of its forward pass.

    gz = W^T ga, gu = W^T gt       ga <- f'(a) gz + f''(a) t gu       gt <- f'(a) gu
    gW = ga z^T + gt u^T           gb = sum of ga
    """
    weights, f = head.weights, activations.get(head.activation)
    need_context, need_x, need_params = need
    h, dh, d2h = trace.inputs
    c = h.shape[1] - dh.shape[1]
    ga, gt = (grad[:, None] for grad in upstream)
    grad_weights, grad_biases = [], []
    for weight, (a, t) in zip(reversed(weights[1:]), reversed(trace.hidden), strict=True):
        slope = f.df(a)
        if need_params:
            grad_weights.append(ga.t() @ f.f(a) + gt.t() @ (slope * t))
            grad_biases.append(ga.sum(0))
        gz, gu = ga @ weight, gt @ weight
        ga, gt = slope * gz + f.d2f(a) * t * gu, slope * gu
    if need_params:
        grad_weights.append(ga.t() @ h)
        grad_weights[-1][:, c:] += gt.t() @ dh
        grad_biases.append(ga.sum(0))
    wc, wx = weights[0][:, :c], weights[0][:, c:]
    empty = h.new_empty(0)
    return (
        ga @ wc if need_context else empty,
        ((ga @ wx) * dh + (gt @ wx) * d2h).sum(1) if need_x else empty.clone(),
        grad_weights[::-1],
        grad_biases[::-1],
    )
