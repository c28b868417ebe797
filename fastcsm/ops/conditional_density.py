"""conditional_density: schemas, fakes and autograd; log q is differentiable, the other results are not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..reference import preconditioning
from ..reference.conditional_density import Kernels
from ..reference.conditional_density import conditional_density_draw as _reference
from ..reference.incremental import contexts_in_order
from ..reference.network import Head
from ..reference.score_head import with_features
from .langevin import DRAW, draw_request, fake_draw
from .library import choice, define, differentiable, for_autograd, halves, needs_grad, once, unbatched, under
from .score_head import fake_grads

_HEAD = (
    "Tensor context, Tensor point, Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " float score_scale, float[] stage_features, float low, float high, float tolerance, int panels,"
    " float squash"
)
#: Rows of one part of the backward pass, whose memory does not grow with the number of rows.
_PART = 1024


def _fake(context, point, *args):
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    x = torch.empty_like(point, dtype=wide)
    return *(torch.empty_like(x) for _ in range(5)), x.new_empty(x.shape[0], 2)


_forward = define(f"conditional_density({_HEAD}, bool inverse) -> ({', '.join(['Tensor'] * 6)})", _fake)
_backward = define(
    f"conditional_density_backward(Tensor grad, {_HEAD}, bool need_context, bool need_x, bool need_params)"
    " -> (Tensor, Tensor, Tensor[], Tensor[])",
    lambda grad, *args: fake_grads(*args[:4], *args[-3:]),
)


#: As :func:`fastcsm.reference.conditional_density.conditional_density_draw`.
conditional_density_draw = define(
    f"conditional_density_draw({DRAW}, float[] sigmas, float low, float high, float tolerance,"
    " float flow_tolerance, int panels, int seed, Tensor samples, int first, int last, float denoise)"
    " -> (Tensor, Tensor)",
    fake_draw,
    draw_request,
    gradient=False,
)


def _compose_backward(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The backward pass from a backend's quadrature nodes and its backward pass of the head.

    Nodes are as of :func:`fastcsm.reference.conditional_density.conditional_density_nodes`. A row that has no
    part in the loss, such as one masked out because it has no density, has no part in the gradient either:
    its nodes, which may be NaN, are left out. Of a preconditioned head the score at a node v is rho r - v,
    and rho, the exponential of the level's negative, has a part in the gradient of the last context feature.
    """
    nodes, head_backward = implementation("conditional_density_nodes"), implementation("score_head_backward")
    score_head = implementation("score_head")

    def run(grad: Tensor, context: Tensor, point: Tensor, *args: Any) -> Any:
        head, options, (need_context, need_x, need_params) = args[:4], args[4:11], args[11:]
        scale, features, squash = *options[:2], options[-1]
        grad_context = torch.zeros_like(context) if need_context else context.new_empty(0)
        grad_x = torch.empty_like(point) if need_x else point.new_empty(0)
        sums: list[Tensor] = []
        for begin in range(0, max(len(point), 1), _PART):
            part = slice(begin, begin + _PART)
            c, x, g = context[part], point[part], grad[part].to(point.dtype)
            t, weight, count, score = nodes(c, x, *head, *options)
            used = torch.arange(t.shape[1], device=t.device) < torch.where(g != 0, count, 0)[:, None]
            # How many there are must be known on the host, which waits here for a GPU.
            index = used.flatten().nonzero()[:, 0]
            row, t, weight = index // t.shape[1], t.flatten()[index], weight.flatten()[index].to(t.dtype)
            if need_x:
                grad_x[part] = torch.where(g != 0, g * score, 0.0)
            if squash:
                own, t = preconditioning.at_level(c, *features)[row], preconditioning.squashed(t, squash).u
                gs = preconditioning.rho(c, *features)[row].to(t.dtype) * weight * g[row]
            else:
                own, gs = with_features(c[row], features), scale * weight * g[row]
            needs = need_context, False, need_params
            gc, _, gw, gb = head_backward(gs, torch.zeros_like(gs), own, t, *head, *needs)
            if need_context:
                if squash:
                    gc[:, -1] -= gs * score_head(own, t, *head, False)[0]
                grad_context[part].index_add_(0, row, gc[:, : c.shape[1]])
            new = [*gw, *gb]
            sums = [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new
        return grad_context, grad_x, *halves(sums)

    return run


backends.compose(
    "conditional_density_backward",
    ("conditional_density_nodes", "score_head_backward", "score_head"),
    _compose_backward,
)


def _compose_draw(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The draw from a backend's quantiles, flow and scores, each unit of the network evaluated once.

    For 16-bit dtypes the contexts are rounded, and the quantiles, which they could not tell apart, float32.
    """
    density, flow = implementation("conditional_density"), implementation("probability_flow")
    kernels = Kernels(contexts_in_order, density, flow, implementation("score_head"))

    def run(x: Tensor, weights: list[Tensor], biases: list[Tensor], frequencies: Tensor, *args: Any) -> Any:
        given = x, weights, biases, frequencies, *args
        if x.dtype.itemsize >= 4:
            return _reference(*given, kernels=kernels)
        wide = [w.float() for w in weights], [b.float() for b in biases], frequencies.float()

        def widened(op: Callable[..., Any]) -> Callable[..., Any]:
            return lambda context, point, w, b, f, *rest: op(context.float(), point, *wide, *rest)

        return _reference(*given, kernels=kernels._replace(density=widened(density), flow=widened(flow)))

    return run


backends.compose(
    "conditional_density_draw", ("conditional_density", "probability_flow", "score_head"), _compose_draw
)


class _ConditionalDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context, point, frequencies, options, *params):
        results = _forward(context, point, *halves(params), frequencies, *options, False)
        ctx.save_for_backward(context, point, frequencies, *params)
        ctx.options, ctx.choice = options, choice()
        ctx.mark_non_differentiable(results[0], *results[2:])
        return results

    @staticmethod
    @once
    def backward(ctx: Any, _, grad, *__):
        unbatched(grad)
        context, point, frequencies, *params = ctx.saved_tensors
        need = *ctx.needs_input_grad[:2], any(ctx.needs_input_grad[4:])
        head = *halves(params), frequencies, *ctx.options
        grads = under(ctx.choice, _backward, grad.contiguous(), context, point, *head, *need)
        return for_autograd(grads, need, 2, len(params))


def conditional_density(
    context: Tensor, point: Tensor, head: Head, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`fastcsm.reference.conditional_density.conditional_density`; log q is differentiable once."""
    *options, inverse = args
    params = (*head.weights, *head.biases)
    if not inverse and needs_grad(context, point, *params):
        options = [head.activation, *options]
        return differentiable(_ConditionalDensity, context, point, head.frequencies, options, *params)
    with torch.no_grad():
        return _forward(context, point, *head, *args)
