"""The normalised density of one row: panels of Gauss-Legendre nodes, refined where the answer needs it.

The formulas, stopping rules and reasons are those of ``fastcsm.reference.quadrature``. The row's panels are
MAX_PANELS places in registers, (P,) each, in no order: what lies left of a panel is summed by comparing left
ends. A place without a panel has width 0 and its left end at infinity. Panels are evaluated Q at a time, the
16 nodes of each in one tile of the head. All but the scores is float64.

A panel is ``(a, h, s, integral, log_mass, error, rounding, mass_error)``; s (P, 16) are the head's outputs.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcsm.reference import quadrature

from .head import times

NODES = tl.constexpr(quadrature.NODES)
FINE = tl.constexpr(quadrature.FINE)
TOP = tl.constexpr(quadrature.TOP)
MAX_PANELS = tl.constexpr(quadrature.MAX_PANELS)
MAX_MOVES = tl.constexpr(quadrature.MAX_MOVES)
MAX_REACH = tl.constexpr(quadrature.MAX_REACH)
LEAST = tl.constexpr(quadrature.LEAST)
HEAVIEST = tl.constexpr(quadrature.HEAVIEST)
ROUNDING = tl.constexpr(quadrature.ROUNDING)

#: Places of the tables of :func:`rule`.
AT, WEIGHTS, FINE_WEIGHTS, COEFFICIENTS, FINE_COEFFICIENTS, BASIS, TO_NODES, TO_FINE, FROM_FINE = map(
    tl.constexpr, range(9)
)
MIDDLE_SHARES, TOP_SHARES, FINE_SHARES, LEFT, LEFT_SLOPE, RIGHT, RIGHT_SLOPE = map(tl.constexpr, range(9, 16))


@cache
def rule(device: torch.device) -> tuple[Tensor, ...]:
    """Tables in float64 by which values at the nodes are multiplied, (n, m) from n values to m.

    The nodes, weights, and weights of the 32-point rule; Legendre coefficients from values at the nodes and
    at the fine nodes, and the polynomials that are 1 at one node; integrals from -1 to the nodes and to the
    fine nodes, and the latter transposed; shares of the coefficients before the last four, of the last four,
    and of the last four of exp(L); and s and s' at either end of a panel of half-width 1.
    """
    host = torch.device("cpu")
    coarse, fine = quadrature.rule(quadrature.NODES, host), quadrature.rule(quadrature.FINE, host)
    top, c = quadrature.TOP, coarse.coefficients.T
    k = torch.arange(quadrature.NODES, dtype=c.dtype, device=host)
    high = torch.arange(quadrature.FINE - top, quadrature.FINE, dtype=c.dtype, device=host)
    sign, slope = 1 - 2 * (k % 2), k * (k + 1) / 2
    shares = c * (2 / (2 * k + 1))
    tables = (
        coarse.nodes,
        coarse.weights,
        fine.weights,
        c,
        fine.coefficients.T,
        coarse.coefficients,
        coarse.to_nodes.T,
        coarse.to_fine.T,
        coarse.to_fine,
        shares[:, -2 * top : -top],
        shares[:, -top:],
        fine.coefficients[-top:].T * (4 / (2 * high + 1)),
        c @ sign,
        -c @ (sign * slope),
        c.sum(1),
        c @ slope,
    )
    # Copied, not computed there: a copy is done when it returns, so that any stream may read it.
    return tuple(table.contiguous().to(device) for table in tables)


@triton.jit
def product(values, table, N: tl.constexpr):
    """Values (Q, n) times a table (n, N)."""
    n: tl.constexpr = values.shape[1]
    t = tl.load(table + tl.arange(0, n)[:, None] * N + tl.arange(0, N)[None, :])
    return tl.sum(times(values[:, :, None], t[None, :, :]), 1)


@triton.jit
def weighted(values, table):
    """Sums of values (Q, n) with n weights, (Q,)."""
    n: tl.constexpr = values.shape[1]
    return tl.sum(times(values, tl.load(table + tl.arange(0, n))[None, :]), 1)


@triton.jit
def fine_density(half, s, rule):
    """exp(L) at the fine nodes of panels relative to the largest, (Q, 32), whose logarithm is (Q,)."""
    local = half[:, None] * product(s, rule[TO_FINE], FINE)
    most = tl.max(local, 1)
    return tl.exp(local - most[:, None]), most


@triton.jit
def summary(a, h, s, unit, rule):
    """Of panels with scores s (Q, 16) what the row needs, (Q,) each.

    The integral of s; the log-mass of exp(L), with L = 0 at the left end; the error of the integral up to any
    point, and what of it is rounding; and the relative error of the mass.
    """
    half = h / 2
    density, most = fine_density(half, s, rule)
    mass = weighted(density, rule[FINE_WEIGHTS])
    local = half[:, None] * product(s, rule[TO_NODES], NODES)
    rough = weighted(tl.exp(local - most[:, None]), rule[WEIGHTS])
    inside = tl.sum(tl.abs(product(density, rule[FINE_SHARES], TOP)), 1)
    top = tl.sum(tl.abs(product(s, rule[TOP_SHARES], TOP)), 1)
    middle = tl.sum(tl.abs(product(s, rule[MIDDLE_SHARES], TOP)), 1)
    rest = tl.maximum(tl.where(2 * top < middle, top / (middle - top), 1.0), LEAST)
    place = tl.maximum(tl.abs(a), tl.abs(a + h))
    size = half * weighted(tl.abs(s), rule[WEIGHTS]) + place * (tl.max(s, 1) - tl.min(s, 1))
    return (
        half * weighted(s, rule[WEIGHTS]),
        most + tl.log(tl.where(half > 0, half, 1.0) * mass),
        2 * half * top * rest,
        unit * size * ROUNDING,
        tl.maximum(tl.abs(rough - mass), inside) / mass,
    )


@triton.jit
def picked(values, hit):
    """Of values (P,) those that ``hit`` (P, Q) has for each of Q."""
    return tl.sum(tl.where(hit, values[:, None], 0.0), 0)


@triton.jit
def put(values, new, hit, fresh):
    """Values (P,) with Q new ones where ``hit`` (P, Q), which is where ``fresh`` (P,)."""
    return tl.where(fresh, tl.sum(tl.where(hit, new[None, :], 0.0), 1), values)


@triton.jit
def nodes_at(a, half, rule):
    """The nodes of panels (Q, 1), or of one, by left end and half-width; (Q, 16)."""
    at = tl.load(rule[AT] + tl.arange(0, NODES))
    return a + half * (at[None, :] + 1)


@triton.jit
def scores_of(a, half, raw, scale, rule, PRECONDITIONED: tl.constexpr):
    """Scores at the nodes of panels as of :func:`nodes_at`, from the head's outputs there, raw (Q, 16)."""
    scores = scale * raw.to(tl.float64)
    if PRECONDITIONED:
        scores -= nodes_at(a, half, rule)
    return scores


@triton.jit
def put_panels(panels, rank, first, raw, scale, unit, rule, PRECONDITIONED: tl.constexpr):
    """Panels with ranks first, first + 1, ... completed by the head's outputs at their nodes, raw (Q, 16)."""
    a, h, s, integral, log_mass, error, rounding, mass_error = panels
    hit = rank[:, None] == first + tl.arange(0, raw.shape[0])[None, :]
    fresh = tl.sum(hit.to(tl.int32), 1) > 0
    left, width = picked(a, hit), picked(h, hit)
    scores = scores_of(left[:, None], width[:, None] / 2, raw, scale, rule, PRECONDITIONED)
    new = summary(left, width, scores, unit, rule)
    return (
        a,
        h,
        tl.where(fresh[:, None], tl.sum(tl.where(hit[:, :, None], raw[None, :, :], 0.0), 1), s),
        put(integral, new[0], hit, fresh),
        put(log_mass, new[1], hit, fresh),
        put(error, new[2], hit, fresh),
        put(rounding, new[3], hit, fresh),
        put(mass_error, new[4], hit, fresh),
    )


@triton.jit
def nodes_of(panels, rank, first, rule, Q: tl.constexpr):
    """The nodes (Q, 16) of the panels with ranks first, first + 1, ..., 0 for ranks that no panel has."""
    hit = rank[:, None] == first + tl.arange(0, Q)[None, :]
    a, h = picked(panels[0], hit), picked(panels[1], hit)
    return nodes_at(a[:, None], h[:, None] / 2, rule)


@triton.jit
def first_panels(low, high, count, COMPUTE: tl.constexpr):
    """``count`` panels of equal width, not yet evaluated."""
    place = tl.arange(0, MAX_PANELS)
    width = (high - low) / count
    zero = tl.zeros((MAX_PANELS,), tl.float64)
    return (
        tl.where(place < count, low + width * place, float("inf")),
        tl.where(place < count, width, zero),
        tl.zeros((MAX_PANELS, NODES), COMPUTE),
        zero,
        zero - float("inf"),
        zero,
        zero,
        zero,
    )


@triton.jit
def left_of(values, a):
    """Sums of the values (P,) of the panels left of each."""
    return tl.sum(tl.where(a[None, :] < a[:, None], values[None, :], 0.0), 1)


@triton.jit
def sides():
    """0 for the left end of a row and 1 for the right one: numbers of both are tensors (2,)."""
    return tl.arange(0, 2)


@triton.jit
def log_tail(inward, slope):
    """Log-mass beyond a point of density 1 where the score towards the inside is ``inward``; inf if none."""
    ratio = slope / (inward * inward)
    exists = (inward > 0) & (ratio < HEAVIEST)
    return tl.where(exists, -tl.log(tl.where(exists, inward * (1 - ratio), 1.0)), float("inf"))


@triton.jit
def combine(panels, scale, low, rule, PRECONDITIONED: tl.constexpr):
    """A row's panels put together.

    Returns L at the left ends, the probabilities left of each panel and of it, (P,); log Z; and of both ends
    (2,): the probability beyond, its error, the score and L there.
    """
    a, h, s, integral, log_mass = panels[0], panels[1], panels[2], panels[3], panels[4]
    there, left_end = h > 0, sides() == 0
    last = tl.max(tl.where(there, a, -float("inf")), 0)
    outer = there[:, None] & (a[:, None] == tl.where(left_end, tl.min(a, 0), last)[None, :])
    # Sums begin at ``low``: far panels on one side leave no rounding on the other.
    before_low = there & (a < low)
    below, above = tl.where(before_low, integral, 0.0), tl.where(before_low, 0.0, integral)
    start = tl.sum(tl.where(a[None, :] < a[:, None], above[None, :], -below[None, :]), 1)
    heights = tl.where(left_end, -tl.sum(below, 0), tl.sum(above, 0))
    half = picked(h, outer) / 2
    raw = tl.sum(tl.where(outer[:, :, None], s[:, None, :], 0.0), 0)
    scores = scores_of(picked(a, outer)[:, None], half[:, None], raw, scale, rule, PRECONDITIONED)
    left, left_slope = weighted(scores, rule[LEFT]), weighted(scores, rule[LEFT_SLOPE]) / half
    right, right_slope = weighted(scores, rule[RIGHT]), weighted(scores, rule[RIGHT_SLOPE]) / half
    outward, inward = tl.where(left_end, left, -right), tl.where(left_end, right, -left)
    beyond = log_tail(outward, tl.where(left_end, left_slope, right_slope)) + heights
    # The same estimate at the inner end of the outermost panels: how far off it was there.
    inside = log_tail(inward, tl.where(left_end, right_slope, left_slope))
    inside += tl.where(left_end, heights + picked(integral, outer), picked(start, outer))

    log_mass = tl.where(there, start + log_mass, -float("inf"))
    finite = tl.where(beyond < float("inf"), beyond, -float("inf"))
    most = tl.maximum(tl.max(log_mass, 0), tl.max(finite, 0))
    mass = tl.exp(log_mass - most)
    z = tl.sum(mass, 0) + tl.sum(tl.exp(finite - most), 0)
    log_z = most + tl.log(z)
    mass /= z
    tails = tl.exp(beyond - log_z)
    before = left_of(mass, a) + tl.sum(tl.where(left_end, tl.exp(finite - log_z), 0.0), 0)
    missed = tl.abs(tl.exp(inside - log_z) - (picked(mass, outer) + tails))
    tail_errors = tl.where(missed < tails, missed, tails)
    return start, before, mass, log_z, tails, tail_errors, tl.where(left_end, left, right), heights


@triton.jit
def range_of(panels):
    """Where the panels begin and end."""
    a, h = panels[0], panels[1]
    return tl.min(a, 0), tl.max(tl.where(h > 0, a + h, -float("inf")), 0)


@triton.jit
def influence(a, h, before, mass, point, INVERSE: tl.constexpr):
    """How much an error in a panel's integral of s moves the answer; (P,)."""
    below, above = before + mass, 1 - before
    if INVERSE:
        moved = below * above
    else:
        inside = tl.maximum(below, above)
        moved = tl.where(point > a + h, below, tl.where(point < a, above, inside))
    return moved


@triton.jit
def growth(moves):
    """Width of the panel by which an end moves next, in units of the first."""
    exponent = tl.maximum(moves, 3 * moves - 2 * MAX_MOVES).to(tl.int64)
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def moves_to(distance, moves):
    """How often an end must move to come so far, in units of the first width: by two more at most."""
    bits = tl.maximum(distance, 1.0).to(tl.int64, bitcast=True)
    exponent = (bits >> 52).to(tl.int32) - 1022
    last = tl.minimum(exponent, (exponent + 2 * MAX_MOVES + 2) // 3)
    return tl.maximum(tl.minimum(last + 1, MAX_REACH) - moves, 1)


@triton.jit
def refine(panels, row, moves, valid, point, tolerance, width, INVERSE: tl.constexpr):
    """Panels split, and some added beyond the ends, where the error of a ``valid`` point's answer needs it.

    ``row`` is what :func:`combine` returns; ``moves`` (2,) are how often the ends moved, first by ``width``.
    Returns the panels, ranks of those to evaluate (P,), -1 for the others, how many those are, and the moves.
    """
    a, h, s, integral, log_mass, error, rounding, mass_error = panels
    before, mass, tails, tail_errors = row[1], row[2], row[4], row[5]
    place, left_end = tl.arange(0, MAX_PANELS), sides() == 0
    count = tl.sum((h > 0).to(tl.int32), 0)
    real = tl.where(error > rounding, error, 0.0)  # splitting does not help rounding
    share = influence(a, h, before, mass, point, INVERSE) * real + mass_error * mass
    share = tl.where(h > 0, share, 0.0)
    begin, end = range_of(panels)
    inexact = tail_errors > tolerance / 8
    if INVERSE:
        inexact |= tl.where(left_end, point, 1 - point) < tails
    move = (inexact & (moves < MAX_MOVES)).to(tl.int32)
    wanted = move
    if not INVERSE:
        away = tl.where(left_end, begin - point, point - end)
        outside = (away > 0) & (moves < MAX_REACH)
        move = tl.where(outside, 1, move)
        wanted = tl.where(outside, moves_to(away / width, moves), move)
    move, wanted = tl.where(valid, move, 0), tl.where(valid, wanted, 0)
    enough = valid & (tl.sum(share, 0) > tolerance / 2)
    needed = share > tl.where(enough, tolerance / (4 * count), float("inf"))
    taken = count + tl.sum(wanted, 0)
    if tl.sum(needed.to(tl.int32), 0) + taken > MAX_PANELS:  # the widest needs first
        other = tl.where(needed, share, -1.0)
        wider = other[None, :] > other[:, None]
        wider |= (other[None, :] == other[:, None]) & (place[None, :] < place[:, None])
        needed &= tl.sum(wider.to(tl.int32), 1) + taken < MAX_PANELS
    full = count + tl.sum(move, 0) > MAX_PANELS
    stretch = tl.where(full, tl.where(tails == float("inf"), move, 0), 0)
    move = tl.where(full, 0, move)

    # The left half stays in its place, the right half and what lies beyond an end take the next free ones.
    number = tl.cumsum(needed.to(tl.int32), 0)
    splits = tl.max(number, 0)
    h = tl.where(needed, h / 2, h)
    parent = needed[None, :] & (count + number[None, :] - 1 == place[:, None])
    child = (place >= count) & (place < count + splits)
    a_new = tl.sum(tl.where(parent, (a + h)[None, :], 0.0), 1)
    h_new = tl.sum(tl.where(parent, h[None, :], 0.0), 1)
    a, h = tl.where(child, a_new, a), tl.where(child, h_new, h)
    widths = width * growth(moves)
    at = tl.where(move > 0, count + splits + tl.cumsum(move, 0) - 1, -1)
    hit = place[:, None] == at[None, :]
    beyond = tl.sum(hit.to(tl.int32), 1) > 0
    a = put(a, tl.where(left_end, begin - widths, end), hit, beyond)
    h = put(h, widths, hit, beyond)
    # Where no more fit, the outermost panels are stretched.
    longer = tl.where(stretch > 0, widths, 0.0)
    to_left = tl.where(a == begin, tl.sum(tl.where(left_end, longer, 0.0), 0), 0.0)
    to_right = tl.where((h > 0) & (a + h == end), tl.sum(tl.where(left_end, 0.0, longer), 0), 0.0)
    a, h = a - to_left, h + to_left + to_right
    stale = needed | child | beyond | (to_left + to_right > 0)
    rank = tl.where(stale, tl.cumsum(stale.to(tl.int32), 0) - 1, -1)
    panels = (a, h, s, integral, log_mass, error, rounding, mass_error)
    return panels, rank, 2 * splits + tl.sum(move + stretch, 0), moves + move + stretch


@triton.jit
def legendre(t, N: tl.constexpr):
    """Values P_k(t) and integrals of P_k from -1 to t, k < N, of a scalar t; (1, N) each."""
    k = tl.arange(0, N)[None, :]
    before, p = t * 0.0 + 1.0, t
    value = tl.where(k == 0, before, 0.0)
    integral = tl.where(k == 0, t + 1, 0.0)
    for i in tl.static_range(1, N):
        after = ((2 * i + 1) * t * p - i * before) / (i + 1)
        value = tl.where(k == i, p, value)
        integral = tl.where(k == i, (after - before) / (2 * i + 1), integral)
        before, p = p, after
    return value, integral


@triton.jit
def invert(d, target):
    """t in [-1, 1] where the integral of the series d (1, 32) is the target: Newton steps in a bracket."""
    t = target * 0.0
    low, high, moved = t - 1, t + 1, t + 1
    i = 0
    while (moved > 1e-15) & (i < 50):
        value, integral = legendre(t, FINE)
        found = tl.sum(tl.sum(times(d, integral), 1), 0)
        low, high = tl.where(found < target, t, low), tl.where(found < target, high, t)
        step = t - (found - target) / tl.sum(tl.sum(times(d, value), 1), 0)
        next = tl.where((step >= low) & (step <= high), step, (low + high) / 2)
        moved, t = tl.abs(next - t), next
        i += 1
    return t
