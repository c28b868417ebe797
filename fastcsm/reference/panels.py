"""Panels of the quadrature: Gauss-Legendre tables, and what a row's answer needs of its panels."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES, FINE, TOP = 16, 32, 4
#: Of the last coefficients, at least this part is taken to be the error.
LEAST = 0.25
#: s' / s^2 up to which a tail is taken to have a mass: that of a power law x^-1.25.
HEAVIEST = 0.8
#: Units of rounding allowed for in the score and in where it is taken, relative to their size.
ROUNDING = 8.0


class Panels(NamedTuple):
    """Panels [a, a + h] of N rows, (N, P), in order; rows that have fewer end in panels of width 0."""

    a: Tensor
    h: Tensor

    def ends(self) -> tuple[Tensor, Tensor]:
        """Where each row's first panel begins and its last one ends, (N,) both."""
        return self.a[:, 0], (self.a + self.h).amax(1)


class Rule(NamedTuple):
    nodes: Tensor
    weights: Tensor
    coefficients: Tensor  # (n, n) Legendre coefficients from values at the nodes
    to_fine: Tensor  # (32, n) integral from -1 to the fine nodes
    to_nodes: Tensor  # (n, n) integral from -1 to the nodes


@cache
def rule(n: int, device: torch.device) -> Rule:
    """Gauss-Legendre rule of n nodes on [-1, 1], and integrals of the interpolating polynomial."""
    legendre = np.polynomial.legendre
    nodes, weights = legendre.leggauss(n)
    degree = np.arange(n)
    coefficients = (legendre.legvander(nodes, n - 1) * weights[:, None]).T * (2 * degree[:, None] + 1) / 2
    fine = legendre.leggauss(FINE)[0]
    integrals = (_integrals(t, n) @ coefficients for t in (fine, nodes))
    with torch.inference_mode(False):  # it outlives the mode of the call that asks first
        return Rule(*(torch.tensor(t, device=device) for t in (nodes, weights, coefficients, *integrals)))


def _integrals(t: np.ndarray, n: int) -> np.ndarray:
    """Integrals from -1 to t of the Legendre polynomials P_0, ..., P_{n-1}; (len(t), n)."""
    p = np.polynomial.legendre.legvander(t, n)
    first = t[:, None] + 1
    return np.concatenate([first, (p[:, 2:] - p[:, :-2]) / (2 * np.arange(1, n) + 1)], 1)


def series(c: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of c_k P_k(t) and its integral from -1 to t; c (..., n), t (...)."""
    before, p = torch.ones_like(t), t
    value, integral = c[..., 0], c[..., 0] * (t + 1)
    for k in range(1, c.shape[-1]):
        after = ((2 * k + 1) * t * p - k * before) / (k + 1)
        value = value + c[..., k] * p
        integral = integral + c[..., k] * (after - before) / (2 * k + 1)
        before, p = p, after
    return value, integral


class Parts(NamedTuple):
    """Of every panel, (N, P): what the row needs of it."""

    integral: Tensor  # of s
    log_mass: Tensor  # of exp(L), with L = 0 at the left end
    error: Tensor  # of the integral of s up to any point of the panel
    rounding: Tensor
    mass_error: Tensor  # relative
    ends: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # (s, s') at the left and the right end
    coefficients: Tensor  # (N, P, 16) of s
    fine: Tensor  # (N, P, 32) L at the fine nodes


def parts_of(panels: Panels, s: Tensor, unit: float) -> Parts:
    coarse, fine, half = rule(NODES, s.device), rule(FINE, s.device), panels.h / 2
    c = s @ coarse.coefficients.T
    local = half[..., None] * (s @ coarse.to_fine.T)
    most = local.detach().amax(-1)
    density = torch.exp(local - most[..., None])
    mass = density @ fine.weights
    rough = torch.exp(half[..., None] * (s @ coarse.to_nodes.T) - most[..., None]) @ coarse.weights
    k = torch.arange(NODES, dtype=s.dtype, device=s.device)
    sign, slope = 1 - 2 * (k % 2), k * (k + 1) / 2
    # |integral from -1 of P_k| <= 2 / (2k + 1)
    shares = c.abs() * (2 / (2 * k + 1))
    high = torch.arange(FINE - TOP, FINE, dtype=s.dtype, device=s.device)
    inside = ((density @ fine.coefficients[-TOP:].T).abs() * (4 / (2 * high + 1))).sum(-1)
    top, middle = shares[..., -TOP:].sum(-1), shares[..., -2 * TOP : -TOP].sum(-1)
    rest = torch.where(2 * top < middle, top / (middle - top), 1.0).clamp_min(LEAST)
    safe = torch.where(half > 0, half, 1.0)
    place = torch.maximum(panels.a.abs(), (panels.a + panels.h).abs())
    return Parts(
        half * (s @ coarse.weights),
        torch.where(half > 0, most + torch.log(safe * mass), -torch.inf),
        2 * half * top * rest,
        ROUNDING * unit * (half * (s.abs() @ coarse.weights) + place * (s.amax(-1) - s.amin(-1))),
        torch.where(half > 0, torch.maximum((rough - mass).abs(), inside) / mass, 0.0),
        ((c @ sign, -(c @ (sign * slope)) / safe), (c.sum(-1), (c @ slope) / safe)),
        c,
        local,
    )


def _log_tail(inward: Tensor, slope: Tensor) -> Tensor:
    """Log-mass beyond a point of density 1 where the score towards the inside is ``inward``; inf if none."""
    ratio = slope / inward.square()
    exists = (inward > 0) & (ratio < HEAVIEST)
    return torch.where(exists, -torch.log(inward * (1 - ratio)), torch.inf)


class Row(NamedTuple):
    """Of every row: its panels put together."""

    start: Tensor  # (N, P) L at the panels' left ends, 0 at the interval's
    heights: Tensor  # (N, 2) L at the row's ends
    log_z: Tensor  # (N,)
    before: Tensor  # (N, P) probability of what lies left of the panel
    mass: Tensor  # (N, P) probability of the panel
    tails: Tensor  # (N, 2) probability beyond the ends; NaN if the row has no normaliser
    tail_errors: Tensor  # (N, 2)


def row_of(panels: Panels, parts: Parts, low: float) -> Row:
    # Sums begin at ``low``: far panels on one side leave no rounding on the other.
    before_low = torch.where((panels.a < low) & (panels.h > 0), parts.integral, 0.0)
    after_low = parts.integral - before_low
    start = after_low.cumsum(1) - after_low - before_low.flip(1).cumsum(1).flip(1)
    heights = torch.stack([-before_low.sum(1), after_low.sum(1)], 1)
    last = (panels.h > 0).sum(1, keepdim=True) - 1

    def of(value: Tensor, index: Tensor) -> Tensor:
        return value.gather(1, index)[:, 0]

    first, (begin, end) = torch.zeros_like(last), heights.unbind(1)
    (left, left_slope), (right, right_slope) = parts.ends
    beyond = [
        _log_tail(of(left, first), of(left_slope, first)) + begin,
        _log_tail(-of(right, last), of(right_slope, last)) + end,
    ]
    # The same estimate at the inner end of the outermost panels: how far off it was there.
    inside = [
        _log_tail(of(right, first), of(right_slope, first)) + begin + of(parts.integral, first),
        _log_tail(-of(left, last), of(left_slope, last)) + of(start, last),
    ]
    log_mass = start + parts.log_mass
    everything = torch.cat([log_mass, *(b.nan_to_num(posinf=-torch.inf)[:, None] for b in beyond)], 1)
    log_z = everything.logsumexp(1)
    mass = torch.exp(log_mass - log_z[:, None])
    tails = torch.stack([torch.exp(b - log_z) for b in beyond], 1)
    found = torch.stack([mass.gather(1, first)[:, 0], mass.gather(1, last)[:, 0]], 1) + tails
    missed = (torch.stack([torch.exp(b - log_z) for b in inside], 1) - found).abs()
    errors = torch.minimum(tails, missed.nan_to_num(nan=torch.inf))
    before = tails[:, :1].nan_to_num(posinf=0.0) + mass.cumsum(1) - mass
    return Row(start, heights, log_z, before, mass, tails, errors)


def influences(panels: Panels, row: Row, point: Tensor, inverse: bool) -> Tensor:
    """How much an error in a panel's integral of s moves the answer; (N, P)."""
    below, above = row.before + row.mass, 1 - row.before
    if inverse:
        return below * above
    x = point[:, None]
    right, left = x > panels.a + panels.h, x < panels.a
    return torch.where(right, below, torch.where(left, above, torch.maximum(below, above)))
