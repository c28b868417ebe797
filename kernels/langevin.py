"""langevin: all stages and steps of N rows in one launch; states in registers, noise drawn in place."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .head import add_product, add_x, bias_chunks, context_chunk, output, read_context, vector, waves
from .launch import HeadLaunch
from .philox import normal


@triton.jit(do_not_specialize=["rows", "seed", "first_step", "stages", "steps"])
def langevin_kernel(
    context,
    x,
    weights,
    biases,
    frequencies,
    schedule,
    samples,
    dimensions,
    states,
    rows: tl.int64,
    seed: tl.int64,
    first_step: tl.int64,
    stages: tl.int32,
    steps: tl.int32,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    STAGE_FEATURE: tl.constexpr,
):
    M: tl.constexpr = TILE[0]
    K: tl.constexpr = len(WIDTHS)
    B: tl.constexpr = TILE[1]
    STORE: tl.constexpr = x.dtype.element_ty
    COMPUTE: tl.constexpr = schedule.dtype.element_ty
    GIVEN: tl.constexpr = C - 1 if STAGE_FEATURE else C
    STRIDE: tl.constexpr = C + 1 + 2 * E
    r = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    inside = r < rows
    sample = tl.load(samples + r, mask=inside, other=0)
    dimension = tl.load(dimensions + r, mask=inside, other=0)
    state = tl.load(x + r, mask=inside, other=0.0).to(COMPUTE)
    c = read_context(context, r, inside, GIVEN, TILE)
    base = ()
    for j in tl.static_range((WIDTHS[0] + B - 1) // B):
        base = base + (
            context_chunk(c, state, weights[0], biases[0], 0.0, j, GIVEN, STRIDE, WIDTHS[0], TILE, P),
        )
    step = first_step.to(tl.int64)
    for stage_number in range(stages):
        drift = tl.load(schedule + 3 * stage_number)
        scale = tl.load(schedule + 3 * stage_number + 1)
        stage = base
        if STAGE_FEATURE:
            feature = tl.load(schedule + 3 * stage_number + 2)
            stage = ()
            for j in tl.static_range(len(base)):
                stage = stage + (
                    base[j] + feature * vector(weights[0] + GIVEN, j * B, WIDTHS[0], STRIDE, B, state),
                )
        for _ in range(steps):
            v = state.to(STORE).to(COMPUTE)
            wave = waves(v, frequencies, E, TILE)
            primal = ()
            for j in tl.static_range(len(stage)):
                a, _ = add_x(stage[j], v, wave, weights[0], 0.0, j, C, E, WIDTHS[0], TILE, False, P)
                primal = primal + (a,)
            for k in tl.static_range(1, K):
                sums = bias_chunks(biases[k], v, WIDTHS[k], M, B)
                for i in tl.static_range(len(primal)):
                    z, _, _ = activate(primal[i], ACTIVATION)
                    sums = add_product(sums, z.to(STORE), weights[k], i, WIDTHS[k - 1], WIDTHS[k], B, P)
                primal = sums
            s, _ = output(primal, (), weights[K], biases[K], v, WIDTHS[K - 1], B, ACTIVATION)
            state += drift * s + scale * normal(seed.to(tl.int64), sample, dimension, step, COMPUTE)
            step += 1
    tl.store(states + r, state.to(STORE), mask=inside)


@lru_cache(maxsize=64)
def _schedule(
    sizes: tuple[float, ...],
    scales: tuple[float, ...],
    features: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(L, 3): factor of the score, standard deviation of the noise, and stage feature; kept on the device."""
    features = features or (0.0,) * len(sizes)
    lines = [
        (0.5 * size * scale, size**0.5, f) for size, scale, f in zip(sizes, scales, features, strict=True)
    ]
    return torch.tensor(lines, dtype=dtype, device=device)


def langevin(
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
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
    """Arguments and results of :func:`fastcsm.reference.langevin.langevin`."""
    head = HeadLaunch("langevin", context, x, weights, biases, frequencies, activation)
    stages = tuple(step_sizes), tuple(score_scales), tuple(stage_features)
    states = torch.empty_like(x)
    head.run(
        langevin_kernel,
        (
            *head.tensors,
            _schedule(*stages, head.dtype, x.device),
            samples,
            dimensions,
            states,
            *(len(x), seed, first_step, len(step_sizes), steps),
        ),
        STAGE_FEATURE=len(stage_features) > 0,
    )
    return states
