"""langevin: annealed one-dimensional Langevin dynamics of N independent rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import random
from .score_head import score_head


def langevin(
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
    seed: int,
    samples: Tensor,
    dimensions: Tensor,
    first_step: int,
) -> Tensor:
    """For every stage i, ``steps`` times x <- x + (e_i / 2) score_scales_i s(c, x) + sqrt(e_i) z.

    The state is carried in float32 for 16-bit inputs and rounded at the end; the head reads it rounded.

    Args:
        context: (N, C), or (N, C - 1) when ``stage_features`` are given.
        x: (N,), the state at the start.
        weights, biases, frequencies, activation: as for :func:`fastcsm.reference.score_head.score_head`.
        step_sizes, score_scales: e_i and the factor of the head's output, one a stage.
        stage_features: empty, or one value a stage: the last context feature during that stage.
        steps: Langevin steps a stage.
        seed, samples, dimensions: the noise of global step k = first_step + i * steps + t is
            ``random.normal(seed, samples, dimensions, k)``; samples and dimensions are (N,) int64.
        first_step: global number of the first step.

    Returns:
        (N,), the state after the last step, in the dtype of x.
    """
    dtype = x.dtype
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    state, step = x.to(wide), first_step
    for i, (size, scale) in enumerate(zip(step_sizes, score_scales, strict=True)):
        c = context
        if len(stage_features) > 0:
            c = torch.cat([c, c.new_full((c.shape[0], 1), stage_features[i])], 1)
        for _ in range(steps):
            s, _ = score_head(c, state.to(dtype), weights, biases, frequencies, activation)
            z = random.normal(seed, samples, dimensions, step, wide)
            state = state + (0.5 * size * scale) * s.to(wide) + size**0.5 * z
            step += 1
    return state.to(dtype, copy=True)
