"""The same computations in plain PyTorch, as a careful user writes them without fastcsm.

Every baseline of the head has the signature ``(context, x, weights, biases, frequencies, activation)`` and
returns (s, s'), each (N,), ready for one backward pass: context (N, C), x (N,), weights and biases as in
nn.Linear (the last layer has one output), frequencies (E,). The CSM loss by the same way takes alpha, beta
and gamma more, floats or (N,), and is the scalar sum over rows of alpha s^2 / 2 + beta s' + gamma s.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "csm_denoising",
    "csm_double_backward",
    "csm_jvp",
    "csm_tangent",
    "exact_score_matching",
    "flow_rk4",
    "head",
    "langevin_hoisted",
    "langevin_loop",
    "langevin_step",
    "scores_double_backward",
    "scores_jvp",
    "scores_tangent",
    "sliced_score_matching",
]

Numbers = float | Tensor
Pair = tuple[Tensor, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": lambda a: F.gelu(a, approximate="tanh"),
    "elu": F.elu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


def _silu(a: Tensor) -> Pair:
    p = torch.sigmoid(a)
    z = a * p
    return z, p + z * (1 - p)


def _gelu(a: Tensor) -> Pair:
    square = a * a
    t = torch.tanh(0.7978845608028654 * a * (1 + 0.044715 * square))
    slope = 0.5 * (1 + t) + 0.3989422804014327 * a * (1 - t * t) * (1 + 0.134145 * square)
    return 0.5 * a * (1 + t), slope


def _tanh(a: Tensor) -> Pair:
    z = torch.tanh(a)
    return z, 1 - z * z


def _elu(a: Tensor) -> Pair:
    z = F.elu(a)
    return z, 1 + z.clamp(max=0)


def _sigmoid(a: Tensor) -> Pair:
    z = torch.sigmoid(a)
    return z, z * (1 - z)


_WITH_SLOPE: dict[str, Callable[[Tensor], Pair]] = {
    "softplus": lambda a: (F.softplus(a), torch.sigmoid(a)),
    "tanh": _tanh,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "relu": lambda a: (F.relu(a), (a > 0).to(a.dtype)),
    "sigmoid": _sigmoid,
}


def _inputs(context: Tensor, x: Tensor, frequencies: Tensor) -> Tensor:
    columns = [context, x.unsqueeze(1)]
    if frequencies.numel():
        angles = x.unsqueeze(1) * frequencies
        columns += [torch.sin(angles), torch.cos(angles)]
    return torch.cat(columns, 1)


def _layers(h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    f = ACTIVATIONS[activation]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = f(F.linear(h, weight, bias))
    return F.linear(h, weights[-1], biases[-1]).squeeze(1)


def head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
) -> Tensor:
    """Score (N,) of an nn.Sequential of Linear and activation on [c, x, sin(w x), cos(w x)]."""
    return _layers(_inputs(context, x, frequencies), weights, biases, activation)


def scores_double_backward(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    graph: bool = True,
) -> Pair:
    """The usual way: s' by autograd.grad(create_graph=True), then backward through both passes.

    Fair because one gradient of the summed score gives every row's derivative (rows are independent), only x
    is differentiated in the first pass, and the head is nothing but library calls. Without ``graph`` no graph
    of the derivative is kept, and there is no second pass.
    """
    x = x.detach().requires_grad_()
    s = head(context, x, weights, biases, frequencies, activation)
    (ds,) = torch.autograd.grad(s.sum(), x, create_graph=graph)
    return s, ds


def scores_tangent(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
) -> Pair:
    """The tangent written by hand beside the primal, so that one ordinary backward pass is enough.

    Fair because it shares the slope's transcendental with the activation, and starts from the column of x in
    W_1 instead of multiplying a tangent of zeros for the context.
    """
    f_and_slope = _WITH_SLOPE[activation]
    features, first = context.shape[1], weights[0]
    t = first[:, features].expand(x.shape[0], -1)
    if frequencies.numel():
        angles = x.unsqueeze(1) * frequencies
        sine, cosine = torch.sin(angles), torch.cos(angles)
        h = torch.cat([context, x.unsqueeze(1), sine, cosine], 1)
        dh = torch.cat([frequencies * cosine, -frequencies * sine], 1)
        t = F.linear(dh, first[:, features + 1 :], first[:, features])
    else:
        h = torch.cat([context, x.unsqueeze(1)], 1)
    z, slope = f_and_slope(F.linear(h, first, biases[0]))
    u = slope * t
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        z, slope = f_and_slope(F.linear(z, weight, bias))
        u = slope * F.linear(u, weight)
    s = F.linear(z, weights[-1], biases[-1]).squeeze(1)
    return s, F.linear(u, weights[-1]).squeeze(1)


def scores_jvp(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
) -> Pair:
    """Forward-mode: (s, s') from one torch.func.jvp with respect to x, then an ordinary backward pass.

    Fair because it is the library's own way to a directional derivative and needs a single forward pass.
    """
    outputs = torch.func.jvp(
        lambda v: head(context, v, weights, biases, frequencies, activation), (x,), (torch.ones_like(x),)
    )
    return outputs[0], outputs[1]


def _csm(scores: Callable[..., Pair]) -> Callable[..., Tensor]:
    """The CSM loss around one way to (s, s')."""

    def loss(
        context: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        frequencies: Tensor,
        activation: str,
        alpha: Numbers,
        beta: Numbers,
        gamma: Numbers | None = None,
    ) -> Tensor:
        s, ds = scores(context, x, weights, biases, frequencies, activation)
        rows = alpha * s.square() / 2 + beta * ds
        return (rows if gamma is None else rows + gamma * s).sum()

    return loss


def csm_denoising(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    alpha: Numbers,
    beta: float,
    gamma: Numbers,
) -> Tensor:
    """The loss for beta = 0, which needs no derivative."""
    s = head(context, x, weights, biases, frequencies, activation)
    return (alpha * s.square() / 2 + gamma * s).sum()


csm_double_backward = _csm(scores_double_backward)
csm_jvp = _csm(scores_jvp)
csm_tangent = _csm(scores_tangent)


def langevin_loop(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    step_sizes: Sequence[float],
    score_scales: Sequence[float],
    stage_features: Sequence[float | None],
    steps: int,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """All stages and steps of Langevin dynamics as a Python loop over the head; returns (N,).

    Fair because autograd is off, the stage's context is put together once per stage, and the noise is drawn
    by torch's own generator. ``noise(k)`` replaces it for checks: the draw of global step k = 1, 2, ...
    A stage feature None adds no feature.
    """
    step = 1
    with torch.no_grad():
        for size, scale, feature in zip(step_sizes, score_scales, stage_features, strict=True):
            c = context
            if feature is not None:
                c = torch.cat([context, context.new_full((context.shape[0], 1), feature)], 1)
            for _ in range(steps):
                z = torch.randn_like(x) if noise is None else noise(step)
                s = head(c, x, weights, biases, frequencies, activation)
                x = x + (size / 2 * scale) * s + size**0.5 * z
                step += 1
    return x


def langevin_step(
    base: Tensor,
    x: Tensor,
    z: Tensor,
    drift: Tensor,
    spread: Tensor,
    scalar_weight: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
) -> Tensor:
    """One step with the context's share of the first layer, base (N, H_1), already there."""
    f = ACTIVATIONS[activation]
    if frequencies.numel():
        angles = x.unsqueeze(1) * frequencies
        h = torch.cat([x.unsqueeze(1), torch.sin(angles), torch.cos(angles)], 1)
        a = base + F.linear(h, scalar_weight)
    else:
        a = torch.addcmul(base, x.unsqueeze(1), scalar_weight.squeeze(1))
    s = _layers(f(a), weights[1:], biases[1:], activation)
    return x + drift * s + spread * z


def langevin_hoisted(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    step_sizes: Sequence[float],
    score_scales: Sequence[float],
    stage_features: Sequence[float],
    steps: int,
    noise: Callable[[int], Tensor] | None = None,
    step_function: Callable[..., Tensor] = langevin_step,
) -> Tensor:
    """:func:`langevin_loop` with the product of W_1 and the context taken out of the loop.

    The most that stays plain PyTorch: what does not change between steps is computed once per stage.
    ``step_function`` may be a compiled :func:`langevin_step`.
    """
    features, step = context.shape[1] + 1, 1
    with torch.no_grad():
        scalar_weight = weights[0][:, features:].contiguous()
        shared = F.linear(context, weights[0][:, : features - 1], biases[0])
        for size, scale, feature in zip(step_sizes, score_scales, stage_features, strict=True):
            base = shared + feature * weights[0][:, features - 1]
            drift, spread = x.new_tensor(size / 2 * scale), x.new_tensor(size**0.5)
            for _ in range(steps):
                z = torch.randn_like(x) if noise is None else noise(step)
                x = step_function(
                    base, x, z, drift, spread, scalar_weight, weights, biases, frequencies, activation
                )
                step += 1
    return x


@torch.no_grad()
def flow_rk4(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    *,
    sigma_from: float,
    sigma_to: float,
    steps: int,
) -> Pair:
    """x and the change of log p along a conditional head's flow, by ``steps`` Runge-Kutta steps of order 4.

    Fair because the steps are equal in sqrt(sigma), where the flow bends least, and the derivative comes from
    the hand-written tangent; every row takes the same steps, as eager code must.
    """
    v, step = sigma_from**0.5, (sigma_to**0.5 - sigma_from**0.5) / steps

    def slope(v: float, x: Tensor) -> Pair:
        c = torch.cat([context, context.new_full((len(x), 1), 2 * math.log(v))], 1)
        r, dr = scores_tangent(c, x, weights, biases, frequencies, activation)
        return -2 * v * r, 2 * v * dr

    change = torch.zeros_like(x)
    for _ in range(steps):
        k1, l1 = slope(v, x)
        k2, l2 = slope(v + step / 2, x + step / 2 * k1)
        k3, l3 = slope(v + step / 2, x + step / 2 * k2)
        k4, l4 = slope(v + step, x + step * k3)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        change = change + step / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
        v += step
    return x, change


def exact_score_matching(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean over samples x (B, D) of |s|^2 / 2 + tr(ds/dx), with one backward pass for each variable.

    Fair because samples are independent, so that one pass gives the diagonal's entry of all of them.
    """
    x = x.detach().requires_grad_()
    s = score(x)
    total = s.square().sum() / 2
    for d in range(x.shape[1]):
        (row,) = torch.autograd.grad(s[:, d].sum(), x, create_graph=True)
        total = total + row[:, d].sum()
    return total / len(x)


def sliced_score_matching(score: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The mean over samples of |s|^2 / 2 + v (ds/dx) v for a projection v (B, D).

    Fair because one backward pass gives v (ds/dx) of all samples.
    """
    x = x.detach().requires_grad_()
    s = score(x)
    (slope,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
    return (s.square().sum() / 2 + (slope * v).sum()) / len(x)
