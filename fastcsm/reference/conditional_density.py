"""conditional_density: normalised density of rows, its gradient, and draws of whole samples by quantiles."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import random
from .langevin import contexts_in_order
from .probability_flow import head_output
from .probability_flow import solve as flow
from .quadrature import NODES, nodes, solve
from .score_head import score_head


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
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log q(x) = L(x) - log Z of the density with d log q / dx = score_scale s(c, x), for every row.

    All but the scores is computed in float64.

    Args:
        context: (N, C), or (N, C - 1) when ``stage_features`` has its one value, the last context feature.
        point: (N,), x; where inverse, probabilities u in [0, 1].
        weights, biases, frequencies, activation: as for :func:`fastcsm.reference.score_head.score_head`.
        score_scale: factor of the head's output.
        stage_features: empty, or one number.
        low, high: where the panels begin; the ends move outwards until what lies beyond does not matter.
        tolerance: largest estimated error of log q(x), or of the probability at the quantile where inverse.
        panels: panels of a row to begin with.
        inverse: find x with P(X <= x) = u.

    Returns:
        x (N,), log q(x), log Z (the integral of exp(L) for L(low) = 0), P(X <= x), the estimated error
        (of log q(x), or of the probability where inverse; inf where there is no density), and (N, 2) the
        probabilities beyond the panels' two ends; in the dtype of x, float32 for 16-bit dtypes. A row whose
        density does not exist is NaN.
    """
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    found = solve(
        _head_score(
            context, point.dtype, weights, biases, frequencies, activation, score_scale, stage_features
        ),
        low,
        high,
        point.to(torch.float64),
        inverse,
        tolerance,
        panels,
        torch.finfo(point.dtype).eps,
    )
    x, log_density, log_z, cdf, error, ends = (value.to(wide) for value in found)
    return x, log_density, log_z, cdf, error, ends


def _head_score(
    context: Tensor,
    dtype: torch.dtype,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    score_scale: float,
    stage_features: Sequence[float],
) -> Callable[[Tensor, Tensor], Tensor]:
    c = context
    if len(stage_features) > 0:
        c = torch.cat([c, c.new_full((len(c), 1), stage_features[0])], 1)

    def score(rows: Tensor, t: Tensor) -> Tensor:
        x, own = t.to(dtype).reshape(-1), c[rows].repeat_interleave(NODES, 0)
        s, _ = score_head(own, x, weights, biases, frequencies, activation, False)
        return score_scale * s.to(torch.float64).reshape(t.shape)

    return score


def conditional_density_nodes(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of log q(x) as a sum over scores: d log q(x) = sum over m of weight_m ds(t_m).

    It is the quadrature of d log q(x) = integral of ds(t) (1{t < x} - P(X > t)) dt.

    Args: as for :func:`conditional_density`.

    Returns:
        t (N, M) in the dtype of x, weight (N, M), how many of each row's M count (N,) int64, and the score at
        x (N,); float32 for 16-bit dtypes. What does not count is zero.
    """
    wide = point.dtype if point.dtype.itemsize >= 4 else torch.float32
    score = _head_score(
        context, point.dtype, weights, biases, frequencies, activation, score_scale, stage_features
    )
    unit = torch.finfo(point.dtype).eps
    t, weight, count, at_point = nodes(score, low, high, point.to(torch.float64), tolerance, panels, unit)
    return t.to(point.dtype), weight.to(wide), count, at_point.to(wide)


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
) -> tuple[Tensor, Tensor]:
    """The whole autoregressive draw: variable order[k], k = first, ..., last - 1, by quantiles.

    The quantile is that of ``random.uniform(seed, samples, order[k], 0)``.

    Args:
        x, weights, biases, frequencies, activation, made_weights, made_biases, degrees, order,
            made_activation, residual, seed, samples, first, last: as for
            :func:`fastcsm.reference.langevin.langevin_draw`, with one network.
        sigmas: empty for the head's own density; one noise level, of a head whose last context feature is
            log sigma and whose output is sigma times the score; or two: the density of the first, carried to
            the second by :func:`fastcsm.reference.probability_flow.probability_flow`.
        low, high, panels: as for :func:`conditional_density`.
        tolerance, flow_tolerance: of a probability, and of a step of the flow.
        denoise: variance v; 0 for none.

    Returns:
        x with the variables drawn, and the same with x_d + v s(x_d) in their place, s the score of the last
        level; equal when v = 0.
    """
    x, clean = x.clone(), x.clone()
    head = weights, biases, frequencies, activation
    scale = 1 / sigmas[0] if len(sigmas) > 0 else 1.0
    levels = [math.log(sigma) for sigma in sigmas]
    network = made_weights, made_biases, degrees, order, made_activation, residual
    for d, (c,) in contexts_in_order(x, *network, first, last):
        u = random.uniform(seed, samples, torch.full_like(samples, d), 0, torch.float64)
        score = _head_score(c, x.dtype, *head, scale, levels[:1])
        unit = torch.finfo(x.dtype).eps
        wide = solve(score, low, high, u, True, tolerance, panels, unit).point
        if len(sigmas) > 1:
            wide = flow(head_output(c, x.dtype, *head), wide, sigmas[0], sigmas[1], flow_tolerance, False)[0]
        value = wide.to(x.dtype)
        x[:, d] = clean[:, d] = value
        if denoise != 0:
            if len(sigmas) > 0:
                c = torch.cat([c, c.new_full((len(c), 1), levels[-1])], 1)
            s, _ = score_head(c, value, *head, False)
            clean[:, d] = value + denoise * s / (sigmas[-1] if len(sigmas) > 0 else 1.0)
    return x, clean
