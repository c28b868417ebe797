"""probability_flow: rows carried between noise levels along the one-dimensional probability flow.

With the context fixed, dx / d ln(sigma) = -sigma^2 s(c, x, sigma) carries the density at one level to that
at another, and along it d log p / d ln(sigma) = sigma^2 s'. With s = r / sigma, r the head's output, and the
time v = sqrt(sigma), in which steps of equal error have about equal length,

    dx / dv = -2 v r,    d log p / dv = 2 v r'.

Of a preconditioned head (``preconditioning.py``) the state is v = kappa y at the row's own level sigma / tau.
That is a / (1 - a) for a in (0, 1), of which d theta = w da with w = 1 / ((1 - a)^2 + a^2). In the time
sqrt(a), which has the same virtue, both slopes are those above times w.

Steps are those of Dormand and Prince (1980), order 5 with an embedded 4, each row with its own: a step is
taken if its error, in x as a part of sigma and in log p, is at most the tolerance; an error e of v is
e / (kappa tau) in x, and e / (a sqrt(w)) as a part of sigma.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import preconditioning
from .score_head import score_head

#: Times, coefficients of the stages, and weights of the error; the last row also gives the step.
TIMES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
#: Of the whole way: the first step; and steps, taken or not, after which a row is given up.
FIRST_STEP, MAX_STEPS = 0.2, 500
#: A new step is the old one times 0.9 err^(-1/5), within these factors.
SMALLEST, LARGEST = 0.2, 5.0

#: The head's output and its derivative at rows (M,), x (M,) and sigma (M,), each (M,).
Output = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def solve(
    output: Output,
    x: Tensor,
    levels: tuple[float | Tensor, float | Tensor],
    tolerance: float,
    change: bool,
    preconditioned: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry rows by any conditional head; see :func:`probability_flow`.

    Args:
        output: the head's output r and its derivative in x, float64, at rows (M,), x (M,), sigma (M,).
        x: (N,) float64; v where the head is preconditioned.
        levels: sigma_from and sigma_to, numbers or (N,) float64; where preconditioned, the rows' own.
        tolerance, change: as for :func:`probability_flow`.
    """
    x, (begin, end) = x.clone(), (_times(level, x, preconditioned) for level in levels)
    dlog, error = torch.zeros_like(x), torch.zeros_like(x)
    v, h = begin.clone(), FIRST_STEP * (end - begin)
    rows = (begin != end).nonzero()[:, 0]
    known = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    slopes = x.new_zeros(2, len(TIMES), len(x))  # of x and of log p, by stage

    def slope(rows: Tensor, v: Tensor, x: Tensor) -> Tensor:
        r, dr = output(rows, x, _level(v, preconditioned))
        speed = 2 * v * _weight(v, preconditioned)
        return torch.stack([-speed * r, speed * dr if change else torch.zeros_like(v)])

    for _ in range(MAX_STEPS):
        if not len(rows):
            break
        new = rows[~known[rows]]
        if len(new):
            slopes[:, 0, new] = slope(new, v[new], x[new])
            known[new] = True
        left = end[rows] - v[rows]
        last = h[rows].abs() >= 0.9999 * left.abs()
        step = torch.where(last, left, h[rows])
        k = slopes[:, :, rows]
        for i in range(1, len(TIMES)):
            y = x[rows] + step * (x.new_tensor(STAGES[i]) @ k[0, :i])
            k[:, i] = slope(rows, torch.where(last & (i >= 5), end[rows], v[rows] + TIMES[i] * step), y)
        grown = step * (x.new_tensor(STAGES[-1]) @ k[:, :-1])
        off = (step * (x.new_tensor(ERRORS) @ k)).abs()
        low = torch.minimum(v[rows].abs(), (v[rows] + step).abs())
        off = torch.maximum(off[0] / (low.square() * _weight(low, preconditioned).sqrt()), off[1])
        taken = off <= tolerance
        factor = 0.9 * (off / tolerance).clamp_min(1e-10) ** -0.2
        h[rows] = step * torch.nan_to_num(factor, nan=SMALLEST).clamp(SMALLEST, LARGEST)
        on = rows[taken]
        x[on] += grown[0, taken]
        dlog[on] += grown[1, taken]
        error[on] += off[taken]
        v[on] = torch.where(last, end[rows], v[rows] + step)[taken]
        slopes[:, 0, on] = k[:, -1, taken]
        rows = rows[~(taken & last)]
    x[rows], dlog[rows], error[rows] = torch.nan, torch.nan, torch.inf
    return x, dlog, error


def _times(level: float | Tensor, x: Tensor, preconditioned: bool) -> Tensor:
    sigma = torch.as_tensor(level, dtype=x.dtype, device=x.device).expand_as(x)
    return (sigma / (1 + sigma) if preconditioned else sigma).sqrt()


def _level(v: Tensor, preconditioned: bool) -> Tensor:
    a = v.square()
    return a / (1 - a) if preconditioned else a


def _weight(v: Tensor, preconditioned: bool) -> Tensor:
    """w at time v, 1 of a plain head."""
    a = v.square()
    return ((1 - a).square() + a.square()).reciprocal() if preconditioned else torch.ones_like(v)


def probability_flow(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    sigma_from: float,
    sigma_to: float,
    tolerance: float,
    change: bool,
    squash: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry x from noise level ``sigma_from`` to ``sigma_to`` with a conditional head, each row for itself.

    The head's last context feature is log sigma and its output is sigma times the score; or, with ``squash``,
    it is preconditioned and x is v. The state is carried
    in float64 in the reference, at least in float32 everywhere.

    Args: as for :func:`fastcsm.functional.probability_flow`, none left out: context (N, C - 1), or
    (N, C) with ``squash``, and x (N,).

    Returns:
        The fields of :class:`fastcsm.functional.Flow`, (N,) each, the change zeros where it is not wanted; in
        the dtype of x, float32 for 16-bit dtypes. NaN, NaN and inf for a row that 500 steps do not finish.
    """
    wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    head = weights, biases, frequencies, activation
    y, dlog, error = unrounded(context, x, *head, sigma_from, sigma_to, tolerance, change, squash)
    return y.to(wide), dlog.to(wide), error.to(wide)


def unrounded(context: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`probability_flow` with results in float64; the head computes in the dtype of the contexts."""
    *head, sigma_from, sigma_to, tolerance, change, squash = args
    levels: tuple[Any, Any] = sigma_from, sigma_to
    given = context
    if squash:
        tau = preconditioning.rho(context, 0.0)
        levels, given = (sigma_from / tau, sigma_to / tau), context[:, :-1]

    def output(rows: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c = torch.cat([given[rows], sigma.log()[:, None].to(context.dtype)], 1)
        x, factor = preconditioning.squashed(x, squash) if squash else (x, torch.ones_like(x))
        s, ds = score_head(c, x.to(context.dtype), *head)
        return s.to(torch.float64), factor * ds.to(torch.float64)

    return solve(output, x.to(torch.float64), levels, tolerance, change, squash > 0)
