"""langevin: all stages and steps of N rows in one launch, and the whole autoregressive draw in one launch.

The state of a row stays in registers for all steps and its noise is drawn in place. In a draw a program owns
M samples and goes through the variables in order (``incremental.py``): it finishes the hidden units of the
network that have come due, forms the contexts of the next variable, and runs the dynamics.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .head import read_context
from .incremental import contexts, finish_units
from .launch import HeadLaunch
from .philox import normal
from .points import add_feature, evaluate, shares_of_rows


@triton.jit
def at_stage(
    base,
    line,
    like,
    weight,
    COLUMN: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    STAGE_FEATURE: tl.constexpr,
):
    """``base`` with the stage's own context feature, the third number of its line in the schedule, added."""
    stage = base
    if STAGE_FEATURE:
        stage = add_feature(base, tl.load(line + 2), weight, like, COLUMN, STRIDE, WIDTH, TILE)
    return stage


@triton.jit
def score(
    stage,
    state,
    weights,
    biases,
    frequencies,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
):
    """s(c, x), (M,), for x the state rounded to the weights' dtype."""
    v = state.to(weights[0].dtype.element_ty).to(state.dtype)
    s, _ = evaluate(stage, v, weights, biases, frequencies, C, E, WIDTHS, TILE, ACTIVATION, False, P)
    return s


@triton.jit
def dynamics(
    state,
    base,
    begin,
    end,
    steps,
    seed,
    sample,
    dimension,
    first_step,
    weights,
    biases,
    frequencies,
    schedule,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    STAGE_FEATURE: tl.constexpr,
):
    """The state (M,) after ``steps`` steps at each stage from ``begin`` to ``end``."""
    STRIDE: tl.constexpr = C + 1 + 2 * E
    step = first_step
    for i in range(begin, end):
        line = schedule + 3 * i
        drift, scale = tl.load(line), tl.load(line + 1)
        stage = at_stage(base, line, state, weights[0], C - 1, STRIDE, WIDTHS[0], TILE, STAGE_FEATURE)
        for _ in range(steps):
            s = score(stage, state, weights, biases, frequencies, C, E, WIDTHS, TILE, ACTIVATION, P)
            state += drift * s + scale * normal(seed, sample, dimension, step, state.dtype)
            step += 1
    return state


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
    GIVEN: tl.constexpr = C - 1 if STAGE_FEATURE else C
    r = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    inside = r < rows
    sample = tl.load(samples + r, mask=inside, other=0)
    dimension = tl.load(dimensions + r, mask=inside, other=0)
    state = tl.load(x + r, mask=inside, other=0.0).to(schedule.dtype.element_ty)
    c = read_context(context, r, inside, GIVEN, TILE)
    base = shares_of_rows(c, state, weights[0], biases[0], GIVEN, C + 1 + 2 * E, WIDTHS[0], TILE, P)
    state = dynamics(
        state,
        base,
        0,
        stages,
        steps,
        seed.to(tl.int64),
        sample,
        dimension,
        first_step.to(tl.int64),
        weights,
        biases,
        frequencies,
        schedule,
        C,
        E,
        WIDTHS,
        TILE,
        ACTIVATION,
        P,
        STAGE_FEATURE,
    )
    tl.store(states + r, state.to(states.dtype.element_ty), mask=inside)


@triton.jit
def model(pointers, m, SIZES: tl.constexpr, PART: tl.constexpr):
    """Where the tensors of model m begin, those of all models lying in a row; SIZES[PART] are theirs."""
    moved = ()
    for k in tl.static_range(len(pointers)):
        moved = moved + (pointers[k] + m * tl.full([], SIZES[PART][k], tl.int64),)
    return moved


@triton.jit(do_not_specialize=["rows", "seed", "first", "last", "models", "stages", "steps"])
def langevin_draw_kernel(
    x,
    clean,
    weights,
    biases,
    frequencies,
    schedule,
    samples,
    made_weights,
    made_biases,
    order,
    due,
    values,
    sums,
    rows: tl.int64,
    seed: tl.int64,
    first: tl.int32,
    last: tl.int32,
    models: tl.int32,
    stages: tl.int32,
    steps: tl.int32,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    STAGE_FEATURE: tl.constexpr,
    LAYERS: tl.constexpr,
    UNITS: tl.constexpr,
    SIZES: tl.constexpr,
    BK: tl.constexpr,
    MADE_ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DENOISE: tl.constexpr,
):
    M: tl.constexpr = TILE[0]
    L: tl.constexpr = len(LAYERS) - 1
    VARIABLES: tl.constexpr = LAYERS[0]
    STORE: tl.constexpr = x.dtype.element_ty
    COMPUTE: tl.constexpr = schedule.dtype.element_ty
    GIVEN: tl.constexpr = C - 1 if STAGE_FEATURE else C
    STRIDE: tl.constexpr = C + 1 + 2 * E
    r = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    inside = r < rows
    sample = tl.load(samples + r, mask=inside, other=0)
    # The program's rows of values and sums: M for each model.
    first_row = tl.program_id(0).to(tl.int64) * models * M + tl.arange(0, M)
    zero = tl.zeros((M,), COMPUTE)
    for k in range(0, last):
        for m in range(models):
            own = (first_row + m * M)[:, None]
            finish_units(
                k,
                x + r[:, None] * VARIABLES,
                inside,
                values + own * UNITS,
                sums + own * LAYERS[1],
                model(made_weights, m, SIZES, 2),
                model(made_biases, m, SIZES, 3),
                order,
                due,
                zero,
                LAYERS,
                BK,
                MADE_ACTIVATION,
                RESIDUAL,
                P,
            )
        if k >= first:
            d = tl.load(order + k)
            place = r * VARIABLES + d
            state = normal(seed.to(tl.int64), sample, d, 0, COMPUTE)
            for m in range(models):
                own = (first_row + m * M)[:, None]
                w, b = model(weights, m, SIZES, 0), model(biases, m, SIZES, 1)
                c = contexts(
                    d,
                    tl.load(due + (L - 1) * (VARIABLES + 2) + k + 1),
                    inside,
                    values + own * UNITS + (UNITS - LAYERS[L]),
                    model(made_weights, m, SIZES, 2)[L],
                    model(made_biases, m, SIZES, 3)[L],
                    order,
                    zero,
                    GIVEN,
                    LAYERS[L],
                    BK,
                    TILE[2],
                    P,
                )
                base = shares_of_rows(c, zero, w[0], b[0], GIVEN, STRIDE, WIDTHS[0], TILE, P)
                # A chain is rounded to the samples' dtype where one model hands it to the next.
                state = dynamics(
                    state.to(STORE).to(COMPUTE),
                    base,
                    m * stages,
                    (m + 1) * stages,
                    steps,
                    seed.to(tl.int64),
                    sample,
                    d,
                    1 + m * stages * steps,
                    w,
                    b,
                    frequencies,
                    schedule,
                    C,
                    E,
                    WIDTHS,
                    TILE,
                    ACTIVATION,
                    P,
                    STAGE_FEATURE,
                )
                if DENOISE and m == models - 1:
                    line = schedule + 3 * models * stages
                    stage = at_stage(base, line, zero, w[0], GIVEN, STRIDE, WIDTHS[0], TILE, STAGE_FEATURE)
                    s = score(stage, state, w, b, frequencies, C, E, WIDTHS, TILE, ACTIVATION, P)
                    value = state.to(STORE).to(COMPUTE) + tl.load(line) * s
                    tl.store(clean + place, value.to(STORE), mask=inside)
            tl.store(x + place, state.to(STORE), mask=inside)
            tl.debug_barrier()


@lru_cache(maxsize=64)
def _schedule(
    sizes: tuple[float, ...],
    scales: tuple[float, ...],
    features: tuple[float, ...],
    denoise: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(L + 1, 3): factor of the score, standard deviation of the noise, stage feature; kept on the device.

    The last line is the step to the denoised value.
    """
    features = features or (0.0,) * len(sizes)
    lines = [
        (0.5 * size * scale, size**0.5, f) for size, scale, f in zip(sizes, scales, features, strict=True)
    ]
    lines.append((denoise * scales[-1], 0.0, features[-1]) if scales else (0.0, 0.0, 0.0))
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
            _schedule(*stages, 0.0, head.dtype, x.device),
            samples,
            dimensions,
            states,
            *(len(x), seed, first_step, len(step_sizes), steps),
        ),
        STAGE_FEATURE=len(stage_features) > 0,
    )
    return states


def langevin_draw(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    made_weights: list[Tensor],
    made_biases: list[Tensor],
    degrees: list[Tensor],
    order: Tensor,
    made_activation: str,
    residual: bool,
    step_sizes: Sequence[float],
    score_scales: Sequence[float],
    stage_features: Sequence[float],
    steps: int,
    seed: int,
    samples: Tensor,
    first: int,
    last: int,
    denoise: float,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.langevin.langevin_draw`."""
    batch, variables = x.shape
    drawn = x.clone()
    if batch == 0 or first == last:
        return drawn, x.clone()
    clean = x.clone() if denoise != 0 else drawn
    models = len(made_weights) // (len(degrees) + 1)
    parts = [_in_a_row(tensors, models) for tensors in (weights, biases, made_weights, made_biases)]
    one = weights[: len(parts[0])], biases[: len(parts[0])]
    head = HeadLaunch("langevin_draw", x, x, *one, frequencies, activation)
    layers = (variables, *(len(layer) for layer in degrees))
    units = sum(layers[1:])
    own_rows = head.programs * head.config.tile[0] * models
    stages = tuple(step_sizes), tuple(score_scales), tuple(stage_features)
    head.run(
        langevin_draw_kernel,
        (
            *(drawn, clean, parts[0], parts[1], frequencies),
            _schedule(*stages, denoise, head.dtype, x.device),
            *(samples, parts[2], parts[3], order),
            _due(degrees, variables),
            x.new_empty(own_rows, units),
            x.new_empty(own_rows, layers[1] if residual else 0, dtype=head.dtype),
            *(batch, seed, first, last, models, len(step_sizes) // models, steps),
        ),
        STAGE_FEATURE=len(stage_features) > 0,
        LAYERS=layers,
        UNITS=units,
        SIZES=tuple(tuple(tensor.numel() // models for tensor in part) for part in parts),
        BK=256 // x.dtype.itemsize,
        MADE_ACTIVATION=made_activation,
        RESIDUAL=residual,
        DENOISE=denoise != 0,
    )
    return drawn, clean if denoise != 0 else drawn.clone()


def _in_a_row(tensors: list[Tensor], models: int) -> tuple[Tensor, ...]:
    """For each tensor of a model, those of all models after one another: itself, or a copy."""
    own = len(tensors) // models
    if models == 1:
        return tuple(tensors)
    return tuple(torch.stack(tensors[k::own]) for k in range(own))


def _due(degrees: list[Tensor], variables: int) -> Tensor:
    """(layers, D + 2) int32: how many units of each hidden layer have a degree up to -1, 0, ..., D."""
    upto = torch.arange(-1, variables + 1, device=degrees[0].device)
    return torch.stack([torch.searchsorted(layer, upto, right=True) for layer in degrees]).to(torch.int32)
