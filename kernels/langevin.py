"""langevin: all stages and steps of N rows in one launch, and the whole autoregressive draw in one launch.

The state of a row stays in registers for all steps and its noise is drawn in place. In a draw a program owns
M samples and goes through the variables in order (``incremental.py``): it finishes the hidden units of the
network that have come due, forms the contexts of the next variable, and runs the dynamics.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.head import Head, read_context
from .common.incremental import Made, Network, contexts, finish_units, network_of, of_model
from .common.philox import normal
from .common.points import add_feature, evaluate, shares_of_rows
from .common.preconditioning import kappa_and_rho, squashed
from .launch import HeadLaunch, aligned, constant


class Rows(NamedTuple):
    """Contexts, states before and after, and the samples and dimensions that noise is drawn by; N rows."""

    context: Any
    x: Any
    states: Any
    samples: Any
    dimensions: Any


class Drawn(NamedTuple):
    """Samples as they are drawn and denoised, (B, D) each, and their numbers, (B,)."""

    x: Any
    clean: Any
    samples: Any


@triton.jit
def at_stage(base, line, offset, like, head, S: tl.constexpr):
    """``base`` with the stage's own context feature, if there is one: the third number of its line.

    Of preconditioned rows ``offset`` (M,), -ln(tau), is added to it.
    """
    stage = base
    if S.GIVEN < S.C:
        feature = tl.load(line + 2)
        if S.PRECONDITIONED:
            feature = (feature + offset)[:, None]
        stage = add_feature(base, feature, head, like, S)
    return stage


@triton.jit
def score(stage, state, head, S: tl.constexpr):
    """s(c, x), (M,), for x the state rounded to the weights' dtype."""
    v = state.to(head.weights[0].dtype.element_ty).to(state.dtype)
    s, _ = evaluate(stage, v, head, False, S)
    return s


@triton.jit
def dynamics(state, base, offset, schedule, model, seed, sample, dimension, step, head, S: tl.constexpr):
    """The state (M,) after all steps at each of a model's stages; noise is drawn from number ``step`` on."""
    stages, steps = stages_and_steps(schedule)
    squash = tl.load(schedule + 2)
    if S.PRECONDITIONED:
        per_tau = tl.exp(offset.to(tl.float64)).to(state.dtype)
    for i in range(model * stages + 1, (model + 1) * stages + 1):
        line = schedule + 3 * i
        drift, scale = tl.load(line), tl.load(line + 1)
        stage = at_stage(base, line, offset, state, head, S)
        if S.PRECONDITIONED:
            kappa, rho = kappa_and_rho(drift * per_tau)
            scale = scale * per_tau
            drift = 0.5 * kappa * scale * scale
        for _ in range(steps):
            if not S.HELD:
                tl.debug_barrier()  # keeps loads of weights in the loop
            if S.PRECONDITIONED:
                v = kappa * state
                u, _ = squashed(v, squash)
                s = rho * score(stage, u, head, S) - v  # kappa is in the drift
            else:
                s = score(stage, state, head, S)
            state += drift * s + scale * normal(seed, sample, dimension, step, state.dtype)
            step += 1
    return state


@triton.jit
def stages_and_steps(schedule):
    """Of each model, as the first line of the schedule has them."""
    return tl.load(schedule).to(tl.int32), tl.load(schedule + 1).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "seed", "first_step"])
def langevin_kernel(
    data, head, schedule, rows: tl.int64, seed: tl.int64, first_step: tl.int64, S: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * S.M + tl.arange(0, S.M)
    inside = r < rows
    sample = tl.load(data.samples + r, mask=inside, other=0)
    dimension = tl.load(data.dimensions + r, mask=inside, other=0)
    COMPUTE: tl.constexpr = schedule.dtype.element_ty
    state = tl.load(data.x + r, mask=inside, other=0.0).to(COMPUTE)
    base = shares_of_rows(read_context(data.context + r * S.ROW, inside, S), state, head, S)
    offset = state
    if S.PRECONDITIONED:
        offset = tl.load(data.context + r * S.ROW + S.GIVEN, mask=inside, other=0.0).to(COMPUTE)
    seed, step = seed.to(tl.int64), first_step.to(tl.int64)
    state = dynamics(state, base, offset, schedule, 0, seed, sample, dimension, step, head, S)
    tl.store(data.states + r, state.to(data.states.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "seed", "first", "last"])
def langevin_draw_kernel(
    drawn,
    head,
    made,
    schedule,
    rows: tl.int64,
    seed: tl.int64,
    first: tl.int32,
    last: tl.int32,
    N: tl.constexpr,
    S: tl.constexpr,
):
    VARIABLES: tl.constexpr = N.LAYERS[0]
    STORE: tl.constexpr = drawn.x.dtype.element_ty
    COMPUTE: tl.constexpr = schedule.dtype.element_ty
    stages, steps = stages_and_steps(schedule)
    r = tl.program_id(0).to(tl.int64) * S.M + tl.arange(0, S.M)
    inside = r < rows
    sample = tl.load(drawn.samples + r, mask=inside, other=0)
    zero = tl.zeros((S.M,), COMPUTE)
    for k in range(0, last):
        for m in range(N.MODELS):
            finish_units(k, drawn.x + r[:, None] * VARIABLES, inside, network_of(made, m, N, S), zero, N, S)
        if k >= first:
            d = tl.load(made.order + k)
            place = r * VARIABLES + d
            state = normal(seed.to(tl.int64), sample, d, 0, COMPUTE)
            for m in range(N.MODELS):
                c = contexts(d, k, inside, network_of(made, m, N, S), zero, N, S)
                w, b = of_model(head.weights, m, 0, N), of_model(head.biases, m, 1, N)
                own = Head(w, b, head.frequencies)
                base = shares_of_rows(c, zero, own, S)
                # A chain is rounded to the samples' dtype where one model hands it to the next.
                state = state.to(STORE).to(COMPUTE)
                step = 1 + m * stages * steps
                state = dynamics(state, base, zero, schedule, m, seed.to(tl.int64), sample, d, step, own, S)
                if N.DENOISE and m == N.MODELS - 1:
                    line = schedule + 3 * (N.MODELS * stages + 1)
                    s = score(at_stage(base, line, zero, zero, own, S), state, own, S)
                    value = state.to(STORE).to(COMPUTE) + tl.load(line) * s
                    tl.store(drawn.clean + place, value.to(STORE), mask=inside)
            tl.store(drawn.x + place, state.to(STORE), mask=inside)
            tl.debug_barrier()


def _schedule(
    models: int,
    steps: int,
    sizes: Sequence[float],
    scales: Sequence[float],
    features: Sequence[float],
    denoise: float,
    squash: float,
    like: Tensor,
) -> Tensor:
    """(L + 2, 3): the stages of a model, the steps of each, and u0 of a preconditioned head; of every stage
    the factor of the score, or the noise level of such a head, the standard deviation of the step's noise,
    and its feature; the step to the denoised value.
    """
    features = features or (0.0,) * len(sizes)
    lines = [
        (math.exp(f) if squash else 0.5 * size * scale, size**0.5, f)
        for size, scale, f in zip(sizes, scales, features, strict=True)
    ]
    last = (denoise * scales[-1], 0.0, features[-1]) if scales else (0.0, 0.0, 0.0)
    counts = float(len(sizes) // models), float(steps), squash
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    return constant((counts, *lines, last), dtype, like.device)


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
    squash: float,
) -> Tensor:
    """Arguments and results of :func:`fastcsm.reference.langevin.langevin`."""
    parameters = weights, biases, frequencies, activation
    head = HeadLaunch("langevin", context, x, *parameters, preconditioned=squash > 0)
    states = torch.empty_like(x)
    schedule = _schedule(1, steps, step_sizes, score_scales, stage_features, 0.0, squash, x)
    context, x, tensors = head.tensors
    data = Rows(context, x, states, samples, dimensions)
    head.run(langevin_kernel, (data, tensors, schedule, len(x), seed, first_step), head.chains)
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
    given = weights[0].shape[1] - 1 - 2 * len(frequencies) - (len(stage_features) > 0)
    one = weights[: len(parts[0])], biases[: len(parts[1])]
    head = HeadLaunch("langevin_draw", x, x, *one, frequencies, activation, given=given)
    layers = (variables, *(len(layer) for layer in degrees))
    schedule = _schedule(models, steps, step_sizes, score_scales, stage_features, denoise, 0.0, x)
    network = Network(
        *(layers, sum(layers[1:]), made_activation, residual, 256 // x.dtype.itemsize, models),
        tuple(tuple(tensor.numel() // models for tensor in part) for part in parts),
        denoise != 0,
    )

    def args(rows: int) -> tuple[Any, ...]:
        values = x.new_empty(rows, sum(layers[1:]))
        sums = x.new_empty(rows, layers[1] if residual else 0, dtype=schedule.dtype)
        made = Made(parts[2], parts[3], order, _due(degrees, variables), values, sums)
        all_heads = Head(parts[0], parts[1], frequencies)
        return Drawn(drawn, clean, samples), all_heads, made, schedule, batch, seed, first, last

    head.fit(langevin_draw_kernel, args(0), N=network)
    rows = head.chains() * head.rows * models
    head.run(langevin_draw_kernel, args(rows), head.chains, N=network)
    return drawn, clean if denoise != 0 else drawn.clone()


def _in_a_row(tensors: list[Tensor], models: int) -> tuple[Tensor, ...]:
    """For each tensor of a model, those of all models after one another: itself, or a copy."""
    own = len(tensors) // models
    if models == 1:
        return tuple(map(aligned, tensors))
    return tuple(torch.stack(tensors[k::own]) for k in range(own))


def _due(degrees: list[Tensor], variables: int) -> Tensor:
    """(layers, D + 2) int32: how many units of each hidden layer have a degree up to -1, 0, ..., D."""
    upto = torch.arange(-1, variables + 1, device=degrees[0].device)
    return torch.stack([torch.searchsorted(layer, upto, right=True) for layer in degrees]).to(torch.int32)
