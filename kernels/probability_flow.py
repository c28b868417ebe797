"""probability_flow: N rows carried between noise levels in one launch, each row with steps of its own.

A program owns M rows. Their states and the slopes of all stages stay in registers until the last row has
arrived, those that have are masked; the context's share of the first layer is computed once. Formulas and
constants are those of ``fastcsm.reference.probability_flow``; all but what the head reads is float64.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcsm.reference import probability_flow as reference

from .common.head import read_context
from .common.points import add_feature, evaluate, shares_of_rows
from .common.preconditioning import squashed
from .launch import HeadLaunch, numbers

#: Evaluations of a step, and the power of two that holds them.
STAGES = tl.constexpr(len(reference.TIMES))
COLUMNS = tl.constexpr(triton.next_power_of_2(len(reference.TIMES)))
FIRST_STEP = tl.constexpr(reference.FIRST_STEP)
MAX_STEPS = tl.constexpr(reference.MAX_STEPS)
SMALLEST = tl.constexpr(reference.SMALLEST)
LARGEST = tl.constexpr(reference.LARGEST)


@cache
def tableau(device: torch.device) -> Tensor:
    """(STAGES + 1, COLUMNS + 1) float64: a stage's coefficients and its time, then those of the error."""
    width = triton.next_power_of_2(len(reference.TIMES)) + 1
    lines = [(*line, *[0.0] * (width - 1 - len(line))) for line in (*reference.STAGES, reference.ERRORS)]
    ends = (*reference.TIMES, 0.0)
    return torch.tensor(
        [(*line, end) for line, end in zip(lines, ends, strict=True)], dtype=torch.float64, device=device
    )


@triton.jit
def combined(slopes, tables, LINE, USED):
    """The first USED of a row's slopes, (M, COLUMNS), times a line of the tableau; (M,)."""
    column = tl.arange(0, COLUMNS)[None, :]
    coefficients = tl.load(tables + LINE * (COLUMNS + 1) + column)
    return tl.sum(tl.where(column < USED, slopes * coefficients, 0.0), 1)


@triton.jit
def restarted(slopes, taken):
    """Slopes whose first is the last where the step was taken."""
    column = tl.arange(0, COLUMNS)[None, :]
    last = tl.sum(tl.where(column == STAGES - 1, slopes, 0.0), 1)
    return tl.where((column == 0) & taken[:, None], last[:, None], slopes)


@triton.jit
def time_of(own):
    """The time of preconditioned rows at levels of their own."""
    return tl.sqrt(own / (1.0 + own))


@triton.jit
def weight(a):
    """d theta / da."""
    return 1.0 / ((1.0 - a) * (1.0 - a) + a * a)


class Carried(NamedTuple):
    """Where rows arrive, the change of their log-density, and its error, (N,) each."""

    point: Any
    change: Any
    error: Any


@triton.jit(do_not_specialize=["rows"])
def probability_flow_kernel(
    context, x, head, tables, settings, out, rows: tl.int64, CHANGE: tl.constexpr, S: tl.constexpr
):
    STORE: tl.constexpr = out.point.dtype.element_ty
    r = tl.program_id(0).to(tl.int64) * S.M + tl.arange(0, S.M)
    inside = r < rows
    like = tl.zeros((S.M,), STORE)
    share = shares_of_rows(read_context(context + r * S.ROW, inside, S), like, head, S)
    begin, end, tolerance = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    squash = tl.load(settings + 3)
    if S.PRECONDITIONED:
        offset = tl.load(context + r * S.ROW + S.GIVEN, mask=inside, other=0.0).to(tl.float64)
        begin, end = time_of(begin * tl.exp(offset)), time_of(end * tl.exp(offset))
    zero = tl.zeros((S.M,), tl.float64)
    state = tl.load(x + r, mask=inside, other=0.0).to(tl.float64)
    v, h = zero + begin, zero + (end - begin) * FIRST_STEP
    log_change, off_sum = zero, zero
    column = tl.arange(0, COLUMNS)[None, :]
    dx, dlog = tl.zeros((S.M, COLUMNS), tl.float64), tl.zeros((S.M, COLUMNS), tl.float64)
    arrived = h == 0
    running = inside & (h != 0) & (tl.abs(state) < float("inf"))
    attempt, first, left_to_do = 0, 0, tl.max(running.to(tl.int32), 0)
    while left_to_do > 0:
        rest = end - v
        last = tl.abs(h) >= 0.9999 * tl.abs(rest)
        step = tl.where(last, rest, h)
        for i in range(first, STAGES):
            tl.debug_barrier()  # keeps loads of weights in the loop: registers hold what changes
            time = v + step * tl.load(tables + i * (COLUMNS + 1) + COLUMNS)
            at = state + step * combined(dx, tables, i, i)
            speed = 2 * time
            speed_log = speed
            if S.PRECONDITIONED:
                a = time * time
                level = tl.log((a / (1 - a)).to(STORE))
                at, slope = squashed(at.to(STORE), squash.to(STORE))
                speed *= weight(a)
                speed_log = speed * slope
            else:
                level = 2 * tl.log(time)
            stage = add_feature(share, level.to(STORE)[:, None], head, like, S)
            s, ds = evaluate(stage, at.to(STORE), head, CHANGE, S)
            dx = tl.where(column == i, (-speed * s.to(tl.float64))[:, None], dx)
            if CHANGE:
                dlog = tl.where(column == i, (speed_log * ds.to(tl.float64))[:, None], dlog)
        # The last stage is the first of the next step.
        first = 1
        low = tl.minimum(v, v + step)
        unit = low * low
        if S.PRECONDITIONED:
            unit *= tl.sqrt(weight(unit))
        off_x = tl.abs(step * combined(dx, tables, STAGES, STAGES)) / unit
        off_log = tl.abs(step * combined(dlog, tables, STAGES, STAGES))
        off = tl.where((off_x > off_log) | (off_x != off_x), off_x, off_log)
        taken = running & (off <= tolerance)
        factor = 0.9 * tl.exp(-0.2 * tl.log(tl.maximum(off / tolerance, 1e-10)))
        factor = tl.where(factor > SMALLEST, factor, SMALLEST)  # also where it is no number
        h = step * tl.minimum(factor, LARGEST)
        state += tl.where(taken, step * combined(dx, tables, STAGES - 1, STAGES - 1), 0.0)
        log_change += tl.where(taken, step * combined(dlog, tables, STAGES - 1, STAGES - 1), 0.0)
        off_sum += tl.where(taken, off, 0.0)
        v = tl.where(taken, tl.where(last, end, v + step), v)
        dx, dlog = restarted(dx, taken), restarted(dlog, taken)
        arrived |= taken & last
        running &= ~(taken & last)
        attempt += 1
        left_to_do = tl.where(attempt < MAX_STEPS, tl.max(running.to(tl.int32), 0), 0)
    tl.store(out.point + r, tl.where(arrived, state, float("nan")).to(STORE), mask=inside)
    tl.store(out.change + r, tl.where(arrived, log_change, float("nan")).to(STORE), mask=inside)
    tl.store(out.error + r, tl.where(arrived, off_sum, float("inf")).to(STORE), mask=inside)


def probability_flow(
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    sigma_from: float,
    sigma_to: float,
    tolerance: float,
    change: bool,
    squash: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.probability_flow.probability_flow`."""
    parameters = weights, biases, frequencies, activation
    preconditioned = squash > 0
    head = HeadLaunch("probability_flow", context, x, *parameters, full=True, preconditioned=preconditioned)
    point, log_change, error = (torch.empty_like(x, dtype=head.dtype) for _ in range(3))
    levels = (sigma_from, sigma_to) if preconditioned else (sigma_from**0.5, sigma_to**0.5)
    settings = numbers(x.device, *levels, tolerance, squash)
    args = *head.tensors, tableau(x.device), settings, Carried(point, log_change, error), len(x)
    head.run(probability_flow_kernel, args, head.chains, CHANGE=change)
    return point, log_change, error
