"""The probability flow of rows by equal Runge-Kutta steps."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .head import Pair, Rows, scores_tangent


@torch.no_grad()
def flow_rk4(rows: Rows, *, sigma_from: float, sigma_to: float, steps: int) -> Pair:
    """x and the change of log p along a conditional head's flow, by ``steps`` Runge-Kutta steps of order 4.

    Fair because the steps are equal in sqrt(sigma), where the flow bends least, and the derivative comes from
    the hand-written tangent; every row takes the same steps, as eager code must.
    """
    context = rows.context

    def slope(v: float, x: Tensor) -> Pair:
        c = torch.cat([context, context.new_full((len(x), 1), 2 * math.log(v))], 1)
        r, dr = scores_tangent(rows._replace(context=c, x=x))
        return -2 * v * r, 2 * v * dr

    return _rk4(slope, rows.x, sigma_from**0.5, sigma_to**0.5, steps)


@torch.no_grad()
def preconditioned_flow_rk4(
    rows: Rows, *, sigma_from: float, sigma_to: float, squash: float, steps: int
) -> Pair:
    """:func:`flow_rk4` of a preconditioned head, contexts with -ln(tau) last, and x is v.

    Steps are equal in sqrt(sigma / (tau + sigma)).
    """
    context = rows.context

    def slope(v: Tensor, x: Tensor) -> Pair:
        a, t = v * v, x / squash
        c = torch.cat([context[:, :-1], (a / (1 - a)).log()[:, None]], 1)
        r, dr = scores_tangent(rows._replace(context=c, x=squash * torch.asinh(t)))
        speed = 2 * v / ((1 - a).square() + a.square())
        return -speed * r, speed * dr * (1 + t * t).rsqrt()

    own = [sigma * context[:, -1].exp() for sigma in (sigma_from, sigma_to)]
    begin, end = ((sigma / (1 + sigma)).sqrt() for sigma in own)
    return _rk4(slope, rows.x, begin, end, steps)


def _rk4(slope: Callable[[Any, Tensor], Pair], x: Tensor, v: Any, end: Any, steps: int) -> Pair:
    """Times v and end are numbers, or (N,)."""
    step, change = (end - v) / steps, torch.zeros_like(x)
    for _ in range(steps):
        k1, l1 = slope(v, x)
        k2, l2 = slope(v + step / 2, x + step / 2 * k1)
        k3, l3 = slope(v + step / 2, x + step / 2 * k2)
        k4, l4 = slope(v + step, x + step * k3)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        change = change + step / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
        v = v + step
    return x, change
