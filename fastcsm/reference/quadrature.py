"""The normalised density of a one-dimensional score of any kind, and its quantiles.

The score is integrated twice on panels that are refined row by row. On a panel of half-width h, s is known
at the 16 Gauss-Legendre nodes, so as a polynomial; L, its integral, is one too, and exp(L) is integrated by
the 32-point rule, which costs no further score. With panel integrals I_j of s and log-masses of exp(L) the
row's

    log q(x) = L(x) - log Z,    Z = sum over panels of the integral of exp(L), + what lies beyond both ends

needs only sums, with L = 0 at the lower end of the interval to begin with. Beyond an end e the density is
continued as exp(L(e)) times the tail with the same first two derivatives, whose mass is
exp(L(e)) / (|s| (1 - s' / s^2)): exact for exponential and power laws, close for Gaussians. An end where s
does not point back is moved outwards by panels of doubling width, by which the outermost one is stretched
where no more fit; if it still does not after the last, the density does not exist and the row is NaN.

No polynomial is read outside its panel: an end that a point lies beyond is moved until it does not, by panels
that grow by 8 after those; splits leave room for them. A point still outside, beyond some 1e32 intervals, has
no answer: NaN.

An error e in the integral of s over a panel moves log q(x) by e times |1{panel < x} - P(X > panel)|, so
panels are split by that product: panels between x and the mass matter fully, the others hardly. e is twice
what the Legendre coefficients beyond the last would add if they went on falling as the last four do from
the four before them, or the last four themselves where they do not fall by half; the error of a panel's
mass is the difference of the 16- and 32-point rules, or the share of the last coefficients of exp(L). Both
exceed the error of what is returned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .panels import (  # noqa: F401 (kernels read all constants here)
    FINE,
    HEAVIEST,
    LEAST,
    NODES,
    ROUNDING,
    TOP,
    Panels,
    Parts,
    Row,
    influences,
    parts_of,
    row_of,
    rule,
    series,
)

#: Panels a row may have; by how many an end may move where its tail asks for it, and where a point does.
MAX_PANELS, MAX_MOVES, MAX_REACH = 64, 16, 48
#: By what the errors of panels count that more than MAX_PANELS would have split: waves finer than their nodes
#: have coefficients that do not fall, and the estimate is then only of the size of the error.
UNRESOLVED = 4.0
#: Units of rounding of the sums of panel integrals, which cancel.
CANCELLED = 4 * torch.finfo(torch.float64).eps

#: Score of rows (M,), int64, at t (M, 16) float64; (M, 16).
Score = Callable[[Tensor, Tensor], Tensor]


class Interval(NamedTuple):
    """Where the quadrature of a density begins, and how exact it is to be.

    Attributes:
        low, high: an interval that holds most of the mass.
        tolerance: largest estimated error; by default that of the function.
        panels: number to begin with, of 16 evaluations each, 1 to 16.
    """

    low: float
    high: float
    tolerance: Any = None
    panels: int = 2


class Density(NamedTuple):
    """Results of :func:`fastcsm.functional.conditional_density`: each of the shape of x; ends (..., 2)."""

    point: Tensor
    log_density: Tensor
    log_normalizer: Tensor
    cdf: Tensor
    error: Tensor
    ends: Tensor


def refine(
    score: Score, interval: Interval, point: Tensor, inverse: bool, unit: float
) -> tuple[Panels, Tensor]:
    """Panels on which the answer's estimated error is at most the tolerance, as far as MAX_PANELS allow.

    The second result is their scores (N, P, 16).
    """
    low, high, tolerance, panels = interval
    rows, width, unit_move = len(point), (high - low) / panels, (high - low) / 4
    first = torch.arange(panels, dtype=torch.float64, device=point.device)
    a = (low + width * first).expand(rows, panels).clone()
    grid = Panels(a, torch.full_like(a, width))
    s, stale = a.new_zeros(rows, panels, NODES), torch.ones_like(a, dtype=torch.bool)
    moves = torch.zeros(rows, 2, dtype=torch.int64, device=point.device)
    open_rows = _valid(point, inverse)
    while True:
        stale &= open_rows[:, None]
        s[stale] = score(*_nodes(grid, stale))
        parts = parts_of(grid, s, unit)
        row = row_of(grid, parts, low)
        count = (grid.h > 0).sum(1)
        real = torch.where(parts.error > parts.rounding, parts.error, 0.0)  # splitting does not help rounding
        share = influences(grid, row, point, inverse) * real + parts.mass_error * row.mass
        begin, end = grid.ends()
        short = row.tail_errors > tolerance / 8
        if inverse:
            short |= torch.stack([point, 1 - point], 1) < row.tails
        away = torch.stack([begin - point, point - end], 1)
        outside = (away > 0) & (moves < MAX_REACH) & (not inverse)
        move = (short & (moves < MAX_MOVES) | outside) & open_rows[:, None]
        taken = torch.where(outside, _moves_to(away / unit_move, moves), move)
        split = (share > tolerance / (4 * count[:, None])) & (share.sum(1, keepdim=True) > tolerance / 2)
        split &= open_rows[:, None]
        # The widest needs come first where not all fit.
        room = (MAX_PANELS - count - taken.sum(1))[:, None]
        rank = torch.where(split, share, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        split &= rank < room
        full = (count + move.sum(1) > MAX_PANELS)[:, None]
        stretch = move & full & row.tails.isinf()
        move &= ~full
        open_rows = open_rows & (split.any(1) | move.any(1) | stretch.any(1))
        if not open_rows.any():
            return grid, s
        widths = unit_move * _growth(moves)
        added, wider = (torch.where(ends, widths, 0.0) for ends in (move, stretch))
        grid, s, stale = _refined(grid, s, split, added, wider)
        moves = moves + (move | stretch)


def _growth(moves: Tensor) -> Tensor:
    """Width of the panel by which an end moves next, in units of the first."""
    return torch.exp2(torch.maximum(moves, 3 * moves - 2 * MAX_MOVES).double())


def _moves_to(distance: Tensor, moves: Tensor) -> Tensor:
    """How often an end must move to come so far, in units of the first width: by one more at most."""
    exponent = torch.log2(distance.clamp_min(1.0))
    last = torch.minimum(exponent, (exponent + 2 * MAX_MOVES) / 3).ceil().to(torch.int64)
    return torch.maximum((last + 1).clamp(max=MAX_REACH) - moves, torch.ones_like(moves))


def _refined(
    grid: Panels, s: Tensor, split: Tensor, added: Tensor, wider: Tensor
) -> tuple[Panels, Tensor, Tensor]:
    """Panels (N, P) and their scores, some split in half; panels of widths (N, 2) are added at the ends, or
    the outermost ones made so much wider.

    The third result says which of the panels are new: their scores are not known.
    """
    place, last = torch.arange(grid.h.shape[1], device=s.device), (grid.h > 0).sum(1, keepdim=True) - 1
    outwards = torch.where(place == 0, wider[:, :1], 0.0)
    wide = grid.h + outwards + torch.where(place == last, wider[:, 1:], 0.0)
    grid, fresh = Panels(grid.a - outwards, wide), split | (wide > grid.h)
    (begin, end), half = grid.ends(), torch.where(split, grid.h / 2, grid.h)
    left, right = added[:, :1], added[:, 1:]
    pieces = [
        (grid.a, half, s, fresh),
        (grid.a + half, torch.where(split, half, 0.0), s, split),
        (begin[:, None] - left, left, s[:, :1], left > 0),
        (end[:, None], right, s[:, :1], right > 0),
    ]
    a, h, s, new = (torch.cat(piece, 1) for piece in zip(*pieces, strict=True))
    order = torch.where(h > 0, a, torch.inf).argsort(dim=1, stable=True)
    order = order[:, : int((h > 0).sum(1).max())]
    a, h, new = (value.gather(1, order) for value in (a, h, new))
    s = s.gather(1, order[..., None].expand(-1, -1, NODES)) * (h > 0)[..., None]
    ends = (a + h).masked_fill(h == 0, -torch.inf).amax(1, keepdim=True)
    return Panels(torch.where(h > 0, a, ends), h), s, new & (h > 0)


def _valid(point: Tensor, inverse: bool) -> Tensor:
    return (point >= 0) & (point <= 1) if inverse else point.isfinite()


def _exists(grid: Panels, row: Row, point: Tensor, inverse: bool) -> Tensor:
    """Whether a row has an answer, (N,)."""
    begin, end = grid.ends()
    inside = (begin <= point) & (point <= end) | inverse
    return _valid(point, inverse) & inside & row.tails.isfinite().all(1) & row.log_z.isfinite()


def _nodes(grid: Panels, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,) and nodes (M, 16) of the chosen panels."""
    t = grid.a[chosen][:, None] + grid.h[chosen][:, None] / 2 * (rule(NODES, grid.a.device).nodes + 1)
    return chosen.nonzero()[:, 0], t


def answer(grid: Panels, s: Tensor, low: float, point: Tensor, inverse: bool, unit: float) -> Density:
    """The results from scores s (N, P, 16) on the panels; differentiable in s and the point."""
    parts = parts_of(grid, s, unit)
    row = row_of(grid, parts, low)
    count = (grid.h > 0).sum(1, keepdim=True)
    off = torch.where(count < MAX_PANELS, 1.0, UNRESOLVED) * parts.error + parts.rounding
    error = (influences(grid, row, point, inverse) * off + parts.mass_error * row.mass).sum(1)
    error = error + row.tail_errors.sum(1) + CANCELLED * parts.integral.abs().sum(1)
    if inverse:
        j = (row.before + row.mass < point[:, None]).sum(1, keepdim=True)
    else:
        j = (grid.a + grid.h < point[:, None]).sum(1, keepdim=True)
    j = torch.minimum(j, count - 1)

    def of(value: Tensor) -> Tensor:
        return value.gather(1, j)[:, 0]

    def rows_of(value: Tensor) -> Tensor:
        return value.gather(1, j[..., None].expand(-1, -1, value.shape[2]))[:, 0]

    half, c, local = of(grid.h) / 2, rows_of(parts.coefficients), rows_of(parts.fine)
    most = local.detach().amax(1)
    d = torch.exp(local - most[:, None]) @ rule(FINE, s.device).coefficients.T
    unit_mass = half * torch.exp(of(row.start) + most - row.log_z)
    if inverse:
        t = _invert(d, (point - of(row.before)) / unit_mass)
        x = of(grid.a) + half * (t + 1)
        x = _in_tails(grid, parts, row, point, x)
    else:
        x, t = point, (point - of(grid.a)) / half - 1
    log_density = of(row.start) + half * series(c, t)[1] - row.log_z
    cdf = of(row.before) + unit_mass * series(d, t)[1]
    if inverse:
        outside = torch.stack([point, 1 - point], 1) < row.tails
        log_density = torch.where(outside.any(1), _tail_density(grid, parts, row, x), log_density)
        cdf, error = point, error + (outside * row.tails).sum(1)
    exists = _exists(grid, row, point, inverse) & error.isfinite()
    values = x, log_density, row.log_z, cdf.clamp(0, 1)
    x, log_density, log_z, cdf = (torch.where(exists, value, torch.nan) for value in values)
    error = torch.where(exists, error, torch.inf).detach()
    ends = torch.where(exists[:, None], row.tails, torch.nan).detach()
    return Density(x, log_density, log_z, cdf, error, ends)


def rounded(found: Density, dtype: torch.dtype, inverse: bool) -> Density:
    """The results in a dtype; a row whose log q(x), or its error, is beyond its range has none."""
    found = Density._make(value.to(dtype) for value in found)
    fits = found.error.isfinite() & (found.log_density.isfinite() | inverse)
    *values, error, ends = found
    values = [torch.where(fits, value, torch.nan) for value in values]
    error, ends = torch.where(fits, error, torch.inf), torch.where(fits[:, None], ends, torch.nan)
    return Density._make([*values, error, ends])


def _invert(d: Tensor, target: Tensor) -> Tensor:
    """t in [-1, 1] where the integral of the series d reaches the target: Newton steps kept in a bracket."""
    low, high = -torch.ones_like(target), torch.ones_like(target)
    t = torch.zeros_like(target)
    for _ in range(50):
        value, integral = series(d, t)
        below = integral < target
        low, high = torch.where(below, t, low), torch.where(below, high, t)
        step = t - (integral - target) / value
        t = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return t


def _in_tails(grid: Panels, parts: Parts, row: Row, u: Tensor, x: Tensor) -> Tensor:
    """x, or where u lies beyond an end the quantile of an exponential tail with the score there."""
    (left, _), (right, _) = parts.ends
    last = (grid.h > 0).sum(1, keepdim=True) - 1
    begin, end = grid.ends()
    below = begin + torch.log(u / row.tails[:, 0]) / left[:, 0]
    above = end + torch.log((1 - u) / row.tails[:, 1]) / right.gather(1, last)[:, 0]
    x = torch.where(u < row.tails[:, 0], below, x)
    return torch.where(1 - u < row.tails[:, 1], above, x)


def _tail_density(grid: Panels, parts: Parts, row: Row, x: Tensor) -> Tensor:
    """Log-density beyond the ends."""
    (left, _), (right, _) = parts.ends
    last = (grid.h > 0).sum(1, keepdim=True) - 1
    begin, end = grid.ends()
    below = row.heights[:, 0] + left[:, 0] * (x - begin)
    above = row.heights[:, 1] + right.gather(1, last)[:, 0] * (x - end)
    return torch.where(x < begin, below, above) - row.log_z


def solve(
    score: Score,
    low: float,
    high: float,
    point: Tensor,
    inverse: bool,
    tolerance: float,
    panels: int,
    unit: float,
) -> Density:
    """Density of rows whose scores are ``score(rows, t)``, a function of any kind.

    Args:
        score: takes row numbers (M,) int64 and t (M, 16) float64; differentiable if the result is to be.
        low, high: where to begin: the ends of most of the mass, at best.
        point: (N,) float64; where inverse, probabilities.
        inverse: find the quantile.
        tolerance: largest error in log q, or in the probability where inverse.
        panels: to begin with.
        unit: of rounding in the score.
    """
    with torch.no_grad():
        grid, s = refine(score, Interval(low, high, tolerance, panels), point.detach(), inverse, unit)
        exists = answer(grid, s, low, point, inverse, unit).error.isfinite()
    # Once more, to be differentiated; rows without an answer, which may be NaN, are left out.
    return answer(grid, _scores(score, grid, s, exists), low, point, inverse, unit)


def _scores(score: Score, grid: Panels, s: Tensor, rows: Tensor) -> Tensor:
    """Scores s (N, P, 16), those of some of the rows computed anew."""
    chosen = (grid.h > 0) & rows[:, None]
    return s.masked_scatter(chosen[..., None], score(*_nodes(grid, chosen)).to(torch.float64))


def nodes(
    score: Score, interval: Interval, point: Tensor, unit: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``conditional_density_nodes``; arguments as for :func:`refine`."""
    grid, s = refine(score, interval, point, False, unit)
    coarse, fine = rule(NODES, point.device), rule(FINE, point.device)
    parts = parts_of(grid, s, unit)
    row = row_of(grid, parts, interval.low)
    half, count = grid.h / 2, (grid.h > 0).sum(1, keepdim=True)
    own = torch.minimum((grid.a + grid.h < point[:, None]).sum(1, keepdim=True), count - 1)
    density = torch.exp(parts.fine - parts.fine.amax(-1, keepdim=True)) * fine.weights
    mean = density @ coarse.to_fine / density.sum(-1, keepdim=True)
    after = 1 - row.before - row.mass
    moved = -row.mass[..., None] * mean - after[..., None] * coarse.weights
    place = torch.arange(grid.h.shape[1], device=point.device)
    moved = moved + (place < own)[..., None] * coarse.weights
    x = ((point[:, None] - grid.a) / half).gather(1, own)[:, 0] - 1
    basis = torch.stack([series(c, x)[1] for c in coarse.coefficients.T.unsqueeze(1)], -1)
    moved = moved + (place == own)[..., None] * basis[:, None]
    at_point = series(parts.coefficients[torch.arange(len(point), device=point.device), own[:, 0]], x)[0]
    counts, half = (grid.h > 0)[..., None], half[..., None]
    t = torch.where(counts, grid.a[..., None] + half * (coarse.nodes + 1), 0.0)
    exists = _exists(grid, row, point, False)
    weight = torch.where(exists[:, None, None], half * moved, torch.nan)
    weight = torch.where(counts, weight, 0.0)
    return t.flatten(1), weight.flatten(1), count[:, 0] * NODES, torch.where(exists, at_point, torch.nan)
