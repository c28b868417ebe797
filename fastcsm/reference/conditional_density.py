"""conditional_density: normalised density of rows, its gradient, and draws of whole samples by quantiles."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from . import preconditioning
from .network import Head, Network, contexts_in_order
from .probability_flow import unrounded as unrounded_flow
from .quadrature import NODES, Density, Interval, Score, nodes, rounded, solve
from .score_head import score_head, with_features


def conditional_density(
    context: Tensor,
    point: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    score_scale: float,
    stage_features: Sequence[float],
    low: float,
    high: float,
    tolerance: float,
    panels: int,
    squash: float,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log q(x) = L(x) - log Z of the density with d log q / dx = score_scale s(c, x), for every row.

    All but the scores is computed in float64. With ``squash`` the head is preconditioned, x is v, of which
    the score is rho r - v, the one stage feature is ln(sigma), and ``score_scale`` is not read.

    Args: as for :func:`fastcsm.functional.conditional_density`, none left out: context (N, C), or (N, C - 1)
        with ``stage_features``, which has its one number or is empty, unless there is ``squash``; point (N,),
        x, or where inverse probabilities.

    Returns:
        The fields of :class:`fastcsm.functional.Density`, each (N,), ends (N, 2); in the dtype of x, float32
        for 16-bit dtypes. A row whose density does not exist, or whose log q(x) is beyond the range of that
        dtype, is NaN, its error inf.
    """
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    head = weights, biases, frequencies, activation
    options = low, high, tolerance, panels, squash, inverse
    found = unrounded(context, point, *head, score_scale, stage_features, *options)
    x, log_density, log_z, cdf, error, ends = rounded(found, wide, inverse)
    return x, log_density, log_z, cdf, error, ends


def unrounded(context: Tensor, point: Tensor, *args: Any) -> Density:
    """:func:`conditional_density` with results in float64."""
    *head, scale, features, low, high, tolerance, panels, squash, inverse = args
    score, unit = _head_score(context, Head(*head), scale, features, squash), torch.finfo(context.dtype).eps
    return solve(score, low, high, point.to(torch.float64), inverse, tolerance, panels, unit)


def _head_score(
    context: Tensor, head: Head, score_scale: float, stage_features: Sequence[float], squash: float
) -> Score:
    """The score at nodes of rows, from a head that computes in the dtype of the contexts."""
    if context.dtype is torch.float16:  # panels go on where it ends
        weights, biases, frequencies, activation = head
        wide = [weight.float() for weight in weights], [bias.float() for bias in biases], frequencies.float()
        context, head = context.float(), Head(*wide, activation)
    if squash:
        rho = preconditioning.rho(context, stage_features[0])[:, None]
        c = preconditioning.at_level(context, stage_features[0])
    else:
        c = with_features(context, stage_features)

    def score(rows: Tensor, t: Tensor) -> Tensor:
        x = preconditioning.squashed(t, squash).u if squash else t
        s, _ = score_head(c[rows].repeat_interleave(NODES, 0), x.to(c.dtype).reshape(-1), *head, False)
        s = s.to(torch.float64).reshape(t.shape)
        return rho[rows] * s - t if squash else score_scale * s

    return score


def conditional_density_nodes(
    context: Tensor, point: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of log q(x) as a sum over scores: d log q(x) = sum over m of weight_m ds(t_m).

    It is the quadrature of d log q(x) = integral of ds(t) (1{t < x} - P(X > t)) dt.

    Args: as for :func:`conditional_density`, up to ``squash``.

    Returns:
        t (N, M) in the dtype of x, weight (N, M), how many of each row's M count (N,) int64, and the score at
        x (N,); float32 for 16-bit dtypes. What does not count is zero.
    """
    head, (scale, features, *interval, squash) = args[:4], args[4:]
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    score, unit = _head_score(context, Head(*head), scale, features, squash), torch.finfo(point.dtype).eps
    t, weight, count, at_point = nodes(score, Interval(*interval), point.to(torch.float64), unit)
    return t.to(point.dtype), weight.to(wide), count, at_point.to(wide)


class Kernels(NamedTuple):
    """What :func:`conditional_density_draw` is made of.

    Attributes:
        contexts: as :func:`fastcsm.reference.network.contexts_in_order`.
        density, flow: the ops ``conditional_density`` and ``probability_flow``, for probabilities of at least
            float32; their results need not be rounded to that.
        score_head: the op.
    """

    contexts: Callable[..., Any] = contexts_in_order
    density: Callable[..., Any] = unrounded
    flow: Callable[..., Any] = unrounded_flow
    score_head: Callable[..., Any] = score_head


def conditional_density_draw(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    made_weights: Sequence[Tensor],
    made_biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    order: Tensor,
    made_activation: str,
    residual: bool,
    sigmas: Sequence[float],
    low: float,
    high: float,
    tolerance: float,
    flow_tolerance: float,
    panels: int,
    seed: int,
    samples: Tensor,
    first: int,
    last: int,
    denoise: float,
    *,
    kernels: Kernels = Kernels(),  # noqa: B008 (immutable)
) -> tuple[Tensor, Tensor]:
    """The whole autoregressive draw: variable order[k], k = first, ..., last - 1, by quantiles.

    The quantile is that of ``random.uniform(seed, samples, order[k], 0)``.

    Args:
        x, ..., residual, seed, samples, first, last: as for :func:`fastcsm.reference.langevin.langevin_draw`,
            with one network.
        sigmas: empty for the head's own density; one noise level, of a head whose last context feature is
            log sigma and whose output is sigma times the score; or two: the density of the first, carried to
            the second by :func:`fastcsm.reference.probability_flow.probability_flow`.
        low, high, panels: as for :func:`conditional_density`.
        tolerance, flow_tolerance: of a probability, and of a step of the flow.
        denoise: variance v; 0 for none.
        kernels: the functions that are chained.

    Returns:
        x with the variables drawn, and the same with x_d + v s(x_d) in their place, s that of the last level.
    """
    network = Network(made_weights, made_biases, degrees, order, made_activation, residual)
    head, interval = (weights, biases, frequencies, activation), (low, high, tolerance, panels)
    wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    scale, levels = 1 / sigmas[0] if len(sigmas) > 0 else 1.0, [math.log(sigma) for sigma in sigmas]
    x, clean = x.clone(), x.clone()
    for d, (c,) in kernels.contexts(x, network, first, last):
        u = random.uniform(seed, samples, torch.full_like(samples, d), 0, wide)
        value = kernels.density(c, u, *head, scale, levels[:1], *interval, 0.0, True)[0]
        if len(sigmas) > 1:
            value = kernels.flow(c, value, *head, *sigmas, flow_tolerance, False, 0.0)[0]
        x[:, d] = clean[:, d] = value = value.to(x.dtype)
        if denoise != 0:
            s, _ = kernels.score_head(with_features(c, levels[-1:]), value, *head, False)
            clean[:, d] = value + denoise * s / (sigmas[-1] if len(sigmas) > 0 else 1.0)
    return x, clean
