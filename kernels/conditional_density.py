"""conditional_density: the normalised density of N rows, and the nodes of its gradient, in one launch.

A program owns a row until its panels are good enough (``quadrature.py``), then goes on with another; the
context's share of the first layer is computed once a row. Grids of scores exist in registers only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcsm.reference import quadrature as reference

from .common.head import INTERPRETED, times
from .common.points import add_feature, evaluate, share_of_row
from .common.preconditioning import squashed
from .common.quadrature import (
    BASIS,
    COEFFICIENTS,
    FINE,
    FINE_COEFFICIENTS,
    FINE_WEIGHTS,
    FROM_FINE,
    MAX_PANELS,
    NODES,
    WEIGHTS,
    combine,
    fine_density,
    first_panels,
    influence,
    invert,
    legendre,
    nodes_of,
    picked,
    product,
    put_panels,
    range_of,
    refine,
    rule,
    scores_of,
    sides,
)
from .launch import HeadLaunch, numbers

CANCELLED, UNRESOLVED = tl.constexpr(reference.CANCELLED), tl.constexpr(reference.UNRESOLVED)
#: Most programs of a launch: they take rows in turn.
MOST_PROGRAMS = 1 << 16


class Rule(NamedTuple):
    """The tables of the quadrature, and a launch's settings: scale of the score, stage feature, range, and so
    on to u0 of a preconditioned head.
    """

    tables: Any
    settings: Any


class Density(NamedTuple):
    """What is known of each point: (N,) each, and of both tails (N, 2)."""

    x: Any
    log_density: Any
    log_normalizer: Any
    cdf: Any
    error: Any
    ends: Any


class Nodes(NamedTuple):
    """The nodes of each row and their weights, how many there are, and the score at the point."""

    nodes: Any
    node_weights: Any
    count: Any
    score: Any


@triton.jit
def solve(context, row, point, head, rule, first, INVERSE: tl.constexpr, S: tl.constexpr):
    """The panels of one row, of which it begins with ``first``, what they are together, and the factor of
    the head's output.
    """
    Q: tl.constexpr = S.M // NODES
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if STORE == tl.float64 else tl.float32
    like = tl.zeros((S.M,), COMPUTE)
    scale, level = tl.load(rule.settings), tl.load(rule.settings + 1)
    low, high = tl.load(rule.settings + 2), tl.load(rule.settings + 3)
    tolerance, unit = tl.load(rule.settings + 4), tl.load(rule.settings + 5)
    squash = tl.load(rule.settings + 6)
    if S.PRECONDITIONED:
        level += tl.load(context + row * S.ROW + S.GIVEN).to(tl.float64)
        scale = tl.exp(-level)
    share = share_of_row(context + row * S.ROW, like, head, S)
    if S.GIVEN < S.C:
        share = add_feature(share, level.to(COMPUTE), head, like, S)
    panels = first_panels(low, high, first, COMPUTE)
    zeros, both = tl.zeros((MAX_PANELS,), tl.float64), tl.zeros((2,), tl.float64)
    found = (zeros, zeros, zeros, low * 0.0, both, both, both, both)
    place, moves = tl.arange(0, MAX_PANELS), tl.zeros((2,), tl.int32)
    rank, waiting = tl.where(place < first, place, -1), first
    valid = (point >= 0) & (point <= 1) if INVERSE else tl.abs(point) < float("inf")
    while waiting > 0:
        for b in range(0, waiting, Q):
            tl.debug_barrier()  # keeps loads of weights and tables in the loop: registers hold what changes
            t = nodes_of(panels, rank, b, rule.tables, Q)
            if S.PRECONDITIONED:
                t, _ = squashed(t, squash)
            s, _ = evaluate(share, tl.reshape(t.to(COMPUTE), (S.M,)), head, False, S)
            raw = tl.reshape(s, (Q, NODES))
            panels = put_panels(panels, rank, b, raw, scale, unit, rule.tables, S.PRECONDITIONED)
        found = combine(panels, scale, low, rule.tables, S.PRECONDITIONED)
        panels, rank, waiting, moves = refine(
            panels, found, moves, valid, point, tolerance, (high - low) / 4, INVERSE
        )
    return panels, found, scale


@triton.jit
def holder(panels, row, point, INVERSE: tl.constexpr):
    """Where (P,) the panel that holds the point is, or the quantile: the last one beyond the right end."""
    a, h = panels[0], panels[1]
    reach = row[1] + row[2] if INVERSE else a + h
    last = tl.max(tl.where(h > 0, a, -float("inf")), 0)
    found = tl.min(tl.where((h > 0) & ~(reach < point), a, float("inf")), 0)
    return (h > 0) & (a == tl.minimum(found, last))


@triton.jit
def total(values):
    """The sum of a tensor (1, n), a scalar."""
    return tl.sum(tl.sum(values, 1), 0)


@triton.jit
def exists(panels, row, point, INVERSE: tl.constexpr):
    """Whether the row has an answer."""
    begin, end = range_of(panels)
    inside = (point >= 0) & (point <= 1) if INVERSE else (point >= begin) & (point <= end)
    return inside & (tl.max(row[4], 0) < float("inf")) & (tl.abs(row[3]) < float("inf"))


@triton.jit(do_not_specialize=["rows", "first"])
def conditional_density_kernel(
    context, point, head, rule, out, rows: tl.int64, first: tl.int32, INVERSE: tl.constexpr, S: tl.constexpr
):
    for r in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        u = tl.load(point + r).to(tl.float64)
        panels, row, scale = solve(context, r, u, head, rule, first, INVERSE, S)
        a, h, s, integral, _, panel_error, rounding, mass_error = panels
        start, before, mass, log_z, tails, tail_errors, end_scores, end_heights = row
        panel_error *= tl.where(tl.sum((h > 0).to(tl.int32), 0) < MAX_PANELS, 1.0, UNRESOLVED)
        off = influence(a, h, before, mass, u, INVERSE) * (panel_error + rounding) + mass_error * mass
        off += tl.abs(integral) * CANCELLED
        off = tl.sum(tl.where(h > 0, off, 0.0), 0) + tl.sum(tail_errors, 0)

        own = holder(panels, row, u, INVERSE)
        half, begin = tl.sum(tl.where(own, h, 0.0), 0) / 2, tl.sum(tl.where(own, a, 0.0), 0)
        at = tl.sum(tl.where(own, start, 0.0), 0) - log_z
        below = tl.sum(tl.where(own, before, 0.0), 0)
        raw = tl.sum(tl.where(own[:, None], s, 0.0), 0)[None, :]
        scores = scores_of(begin, half, raw, scale, rule.tables, S.PRECONDITIONED)
        density, most = fine_density(tl.zeros((1,), tl.float64) + half, scores, rule.tables)
        c = product(scores, rule.tables[COEFFICIENTS], NODES)
        d = product(density, rule.tables[FINE_COEFFICIENTS], FINE)
        unit_mass = half * tl.exp(at + tl.max(most, 0))
        if INVERSE:
            t = invert(d, (u - below) / unit_mass)
            place, probability = begin + half * (t + 1), u
        else:
            t = (u - begin) / half - 1
            _, integrals = legendre(t, FINE)
            place, probability = u, below + unit_mass * total(times(d, integrals))
            probability = tl.minimum(tl.maximum(probability, 0.0), 1.0)
        _, integrals = legendre(t, NODES)
        log_q = at + half * total(times(c, integrals))
        if INVERSE:
            # Beyond an end the tail is exponential, with the score there.
            left_end = sides() == 0
            rest = tl.where(left_end, u, 1 - u)
            outside = rest < tails
            away = tl.log(rest / tails) / end_scores
            first_end, last_end = range_of(panels)
            ends_at = tl.where(left_end, first_end, last_end)
            heights = end_heights + end_scores * away
            beyond = tl.max(outside.to(tl.int32), 0) > 0
            place = tl.where(beyond, tl.sum(tl.where(outside, ends_at + away, 0.0), 0), place)
            log_q = tl.where(beyond, tl.sum(tl.where(outside, heights, 0.0), 0) - log_z, log_q)
            off += tl.sum(tl.where(outside, tails, 0.0), 0)

        sound = exists(panels, row, u, INVERSE) & (off < float("inf"))
        if not INVERSE:  # in the range of the results
            log_q = log_q.to(out.x.dtype.element_ty)
            sound &= (tl.abs(log_q) < float("inf")) & (off.to(out.x.dtype.element_ty) < float("inf"))
        tl.store(out.x + r, tl.where(sound, place, float("nan")).to(out.x.dtype.element_ty))
        tl.store(out.log_density + r, tl.where(sound, log_q, float("nan")).to(out.x.dtype.element_ty))
        tl.store(out.log_normalizer + r, tl.where(sound, log_z, float("nan")).to(out.x.dtype.element_ty))
        tl.store(out.cdf + r, tl.where(sound, probability, float("nan")).to(out.x.dtype.element_ty))
        tl.store(out.error + r, tl.where(sound, off, float("inf")).to(out.x.dtype.element_ty))
        tl.store(out.ends + 2 * r + sides(), tl.where(sound, tails, float("nan")).to(out.x.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "first"])
def conditional_density_nodes_kernel(
    context, point, head, rule, out, rows: tl.int64, first: tl.int32, S: tl.constexpr
):
    Q: tl.constexpr = S.M // NODES
    tables = rule.tables
    node = tl.arange(0, NODES)
    rule_weights = tl.load(tables[WEIGHTS] + node)[None, :]
    for r in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x = tl.load(point + r).to(tl.float64)
        panels, row, scale = solve(context, r, x, head, rule, first, False, S)
        a, h, s = panels[0], panels[1], panels[2]
        own = holder(panels, row, x, False)
        half, begin = tl.sum(tl.where(own, h, 0.0), 0) / 2, tl.sum(tl.where(own, a, 0.0), 0)
        values, integrals = legendre((x - begin) / half - 1, NODES)
        held = tl.sum(tl.where(own[:, None], s, 0.0), 0)[None, :]
        own_scores = scores_of(begin, half, held, scale, tables, S.PRECONDITIONED)
        c = product(own_scores, tables[COEFFICIENTS], NODES)
        basis = product(integrals, tables[BASIS], NODES)
        sound = exists(panels, row, x, False)
        answer = tl.where(sound, total(times(c, values)), float("nan"))
        tl.store(out.score + r, answer.to(out.score.dtype.element_ty))

        there = h > 0
        panels_of_row = tl.sum(there.to(tl.int32), 0)
        tl.store(out.count + r, (panels_of_row * NODES).to(tl.int64))
        order = tl.sum((a[None, :] < a[:, None]).to(tl.int32), 1)
        rank = tl.where(there, order, -1)
        for b in range(0, panels_of_row, Q):
            hit = rank[:, None] == b + tl.arange(0, Q)[None, :]
            left, halves, mass = picked(a, hit), picked(h, hit) / 2, picked(row[2], hit)
            after = 1 - picked(row[1], hit) - mass
            raw = tl.sum(tl.where(hit[:, :, None], s[:, None, :], 0.0), 0)
            scores = scores_of(left[:, None], halves[:, None], raw, scale, tables, S.PRECONDITIONED)
            density = fine_density(halves, scores, tables)[0]
            density = times(density, tl.load(tables[FINE_WEIGHTS] + tl.arange(0, FINE))[None, :])
            mean = product(density, tables[FROM_FINE], NODES) / tl.sum(density, 1)[:, None]
            moved = -mass[:, None] * mean - after[:, None] * rule_weights
            moved += tl.where((left < begin)[:, None], rule_weights, 0.0)
            moved += tl.where((left == begin)[:, None], basis, 0.0)
            place = r * (MAX_PANELS * NODES) + (b + tl.arange(0, Q)[:, None]) * NODES + node[None, :]
            inside = (b + tl.arange(0, Q)[:, None] < panels_of_row) & (node[None, :] >= 0)
            moved = tl.where(sound, halves[:, None] * moved, float("nan"))
            at = nodes_of(panels, rank, b, tables, Q)
            tl.store(out.nodes + place, at.to(out.nodes.dtype.element_ty), mask=inside)
            tl.store(out.node_weights + place, moved.to(out.node_weights.dtype.element_ty), mask=inside)


class _Quadrature:
    """One launch of a kernel of this file."""

    def __init__(
        self,
        context: Tensor,
        point: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        frequencies: Tensor,
        activation: str,
        score_scale: float,
        stage_features: Sequence[float],
        low: float,
        high: float,
        tolerance: float,
        panels: int,
        squash: float,
    ):
        self.head = HeadLaunch(
            *("conditional_density", context, point, weights, biases, frequencies, activation),
            exact="tf32x3" if INTERPRETED else "bf16x6",  # the interpreter knows one of them
            preconditioned=squash > 0,
        )
        # A unit of rounding of what enters a product.
        tf32 = self.head.precision == "tf32"
        unit = 2.0**-10 if tf32 else torch.finfo(point.dtype).eps
        feature = stage_features[0] if len(stage_features) > 0 else 0.0
        settings = numbers(point.device, score_scale, feature, low, high, tolerance, unit, squash)
        self._before = *self.head.tensors, Rule(rule(point.device), settings)
        self._after = len(point), panels

    def run(self, kernel: Any, outputs: tuple[Tensor, ...], **constants: Any) -> None:
        rows = self._after[0]
        args = *self._before, outputs, *self._after
        self.head.run(kernel, args, lambda: max(min(rows, MOST_PROGRAMS), 1), **constants)


def conditional_density(
    context: Tensor, point: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.conditional_density.conditional_density`."""
    *head, inverse = args
    launch = _Quadrature(context, point, *head)
    x, log_density, log_z, cdf, error = (torch.empty_like(point, dtype=launch.head.dtype) for _ in range(5))
    outputs = Density(x, log_density, log_z, cdf, error, x.new_empty(len(point), 2))
    launch.run(conditional_density_kernel, outputs, INVERSE=inverse)
    return tuple(outputs)


def conditional_density_nodes(
    context: Tensor, point: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.conditional_density.conditional_density_nodes`."""
    launch = _Quadrature(context, point, *args)
    shape = len(point), reference.MAX_PANELS * reference.NODES
    t, weight = point.new_zeros(shape), point.new_zeros(shape, dtype=launch.head.dtype)
    count = torch.empty_like(point, dtype=torch.int64)
    outputs = Nodes(t, weight, count, torch.empty_like(point, dtype=launch.head.dtype))
    launch.run(conditional_density_nodes_kernel, outputs)
    return tuple(outputs)
