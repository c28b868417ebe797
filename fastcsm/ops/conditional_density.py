"""conditional_density: schemas, fakes and autograd; log q is differentiable, the other results are not."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends, random
from ..host import on_host
from ..incremental import Incremental
from .langevin import DRAW, draw_request
from .library import choice, define, differentiable, needs_grad, once, under
from .score_head import fake_grads

_HEAD = (
    "Tensor context, Tensor point, Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " float score_scale, float[] stage_features, float low, float high, float tolerance, int panels"
)
#: Rows of one part of the backward pass, whose memory does not grow with the number of rows.
_PART = 1024


def _fake(context, point, *args):
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    x = torch.empty_like(point, dtype=wide)
    return *(torch.empty_like(x) for _ in range(5)), x.new_empty(x.shape[0], 2)


def _fake_backward(grad, context, point, weights, biases, *args):
    return fake_grads(context, point, weights, biases, *args[-3:])


_forward = define(f"conditional_density({_HEAD}, bool inverse) -> ({', '.join(['Tensor'] * 6)})", _fake)
_backward = define(
    f"conditional_density_backward(Tensor grad, {_HEAD}, bool need_context, bool need_x, bool need_params)"
    " -> (Tensor, Tensor, Tensor[], Tensor[])",
    _fake_backward,
)


def _fake_draw(x, *args):
    return torch.empty_like(x), torch.empty_like(x)


_draw = define(
    f"conditional_density_draw({DRAW}, float[] sigmas, float low, float high, float tolerance,"
    " float flow_tolerance, int panels, int seed, Tensor samples, int first, int last, float denoise)"
    " -> (Tensor, Tensor)",
    _fake_draw,
    draw_request,
)


def _compose_backward(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The backward pass from a backend's quadrature nodes and its backward pass of the head.

    ``conditional_density_nodes`` takes the arguments of ``conditional_density`` up to ``panels`` and returns
    the nodes t (N, M), the weights d log q / d s(t) (N, M), how many of each row's M count (N,) int64, and
    the score at x (N,).
    """
    nodes, head_backward = implementation("conditional_density_nodes"), implementation("score_head_backward")

    def run(grad, context, point, weights, biases, frequencies, activation, scale, features, *rest):
        *bounds, need_context, need_x, need_params = rest
        grad_context = torch.zeros_like(context) if need_context else context.new_empty(0)
        grad_x = torch.empty_like(point) if need_x else point.new_empty(0)
        sums: list[Tensor] = []
        for begin in range(0, max(len(point), 1), _PART):
            part = slice(begin, begin + _PART)
            c, x, g = context[part], point[part], grad[part].to(point.dtype)
            head = (weights, biases, frequencies, activation)
            t, weight, count, score = nodes(c, x, *head, scale, features, *bounds)
            used = torch.arange(t.shape[1], device=t.device) < count[:, None]
            # How many there are must be known on the host, which waits here for a GPU.
            index = used.flatten().nonzero()[:, 0]
            row, t, weight = index // t.shape[1], t.flatten()[index], weight.flatten()[index].to(t.dtype)
            if need_x:
                grad_x[part] = g * score
            own = c[row]
            if len(features) > 0:
                own = torch.cat([own, own.new_full((len(row), 1), features[0])], 1)
            gs = scale * weight * g[row]
            needs = need_context, False, need_params
            gc, _, gw, gb = head_backward(gs, torch.zeros_like(gs), own, t, *head, *needs)
            if need_context:
                grad_context[part].index_add_(0, row, gc[:, : c.shape[1]])
            new = [*gw, *gb]
            sums = [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new
        return grad_context, grad_x, sums[: len(weights)], sums[len(weights) :]

    return run


backends.compose(
    "conditional_density_backward",
    ("conditional_density_nodes", "score_head_backward"),
    _compose_backward,
)


def _compose_draw(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The draw from a backend's quantiles, flow and scores, variable by variable.

    For 16-bit dtypes the contexts are rounded, and the quantiles, which they could not tell apart, float32.
    """
    density, flow = implementation("conditional_density"), implementation("probability_flow")
    score_head = implementation("score_head")

    def run(x, weights, biases, frequencies, activation, *rest):
        made_weights, made_biases, degrees, order, made_activation, residual = rest[:6]
        sigmas, low, high, tolerance, flow_tolerance, panels, seed, samples, first, last, denoise = rest[6:]
        variables = on_host(order).tolist()
        network = made_weights, made_biases, degrees, order, made_activation, residual
        units = Incremental(len(x), *network)
        wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
        x, clean = x.clone(), x.clone()
        head = weights, biases, frequencies, activation
        wide_head = (
            [w.to(wide) for w in weights],
            [b.to(wide) for b in biases],
            frequencies.to(wide),
            activation,
        )
        scale, levels = 1 / sigmas[0] if sigmas else 1.0, [math.log(sigma) for sigma in sigmas]
        interval = low, high, tolerance, panels
        for k, d in enumerate(variables[:last]):
            if k < first:
                units.feed(x[:, d])
                continue
            context = units.context(k)
            u = random.uniform(seed, samples, torch.full_like(samples, d), 0, wide)
            c = context.to(wide)
            value = density(c, u, *wide_head, scale, levels[:1], *interval, True)[0]
            if len(sigmas) > 1:
                value = flow(c, value, *wide_head, *sigmas, flow_tolerance, False)[0]
            value = value.to(x.dtype)
            x[:, d] = clean[:, d] = value
            if denoise != 0:
                if sigmas:
                    context = torch.cat([context, context.new_full((len(context), 1), levels[-1])], 1)
                s, _ = score_head(context, value, *head, False)
                clean[:, d] = value + denoise * s / (sigmas[-1] if sigmas else 1.0)
            units.feed(value)
        return x, clean

    return run


backends.compose(
    "conditional_density_draw",
    ("conditional_density", "probability_flow", "score_head"),
    _compose_draw,
)


class _ConditionalDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context, point, frequencies, options, *params):
        layers = len(params) // 2
        head = context, point, list(params[:layers]), list(params[layers:]), frequencies
        results = _forward(*head, *options, False)
        ctx.save_for_backward(context, point, frequencies, *params)
        ctx.options, ctx.choice = options, choice()
        ctx.mark_non_differentiable(results[0], *results[2:])
        return results

    @staticmethod
    @once
    def backward(ctx: Any, _, grad, *__):
        context, point, frequencies, *params = ctx.saved_tensors
        layers = len(params) // 2
        needs = ctx.needs_input_grad
        need_params = any(needs[4:])
        grad_context, grad_x, grad_weights, grad_biases = under(
            ctx.choice,
            _backward,
            grad.contiguous(),
            context,
            point,
            params[:layers],
            params[layers:],
            frequencies,
            *ctx.options,
            needs[0],
            needs[1],
            need_params,
        )
        return (
            grad_context if needs[0] else None,
            grad_x if needs[1] else None,
            None,
            None,
            *((*grad_weights, *grad_biases) if need_params else [None] * len(params)),
        )


def conditional_density(
    context: Tensor,
    point: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`fastcsm.reference.conditional_density.conditional_density`; log q is differentiable once."""
    *options, inverse = args
    if not inverse and needs_grad(context, point, *weights, *biases):
        return differentiable(_ConditionalDensity, context, point, frequencies, options, *weights, *biases)
    with torch.no_grad():
        return _forward(context, point, weights, biases, frequencies, *args)


def conditional_density_draw(*args: Any) -> tuple[Tensor, Tensor]:
    """See :func:`fastcsm.reference.conditional_density.conditional_density_draw`; carries no gradient."""
    with torch.no_grad():
        return _draw(*args)
