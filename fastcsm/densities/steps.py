"""log q of a preconditioned head's flow by a few fixed steps: what training by likelihood differentiates.

A step of Heun's method for dv / d theta = -r from theta to theta + h, and the derivative of its map:

    v' = v - h r_1,    w = v - h (r_1 + r_2) / 2,    dw / dv = 1 - h (r_1' + r_2' (1 - h r_1')) / 2

log q is the exact density of that discrete map, so that there is nothing to gain from the error of steps, as
there is where r' is integrated beside v. Levels between the ends, by equal steps of log sigma, are moved at
random by up to 0.4 of a step: weights do not fit themselves to a grid.
"""

import math

import torch
from torch import Tensor

from ..networks.any_head import wide
from ..networks.preconditioned import Preconditioned

#: Steps from the smallest level to the largest.
STEPS = 5
_JITTER = 0.4
#: Least derivative of a step's map, which increases where the steps resolve the flow.
_LEAST = 1e-3


def log_density(
    head: Preconditioned,
    context: Tensor,
    y: Tensor,
    levels: tuple[float, float],
    jitter: Tensor | None = None,
    steps: int = STEPS,
) -> Tensor:
    """log q of rows in their own units, differentiable once.

    Args:
        head: preconditioned.
        context: (..., C), as the head's calls take them.
        y: (...).
        levels: the largest and the smallest.
        jitter: (steps - 1,), uniform numbers on [0, 1) that move the levels between; None leaves them.
        steps: how many.

    Returns:
        (...), in nats, at least float32.
    """
    largest, smallest = map(math.log, levels)
    at = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    if jitter is not None and steps > 1:
        at[1:-1] += _JITTER * (2 * jitter.double().cpu() - 1) / steps
    sigmas = (smallest + (largest - smallest) * at).exp().tolist()
    theta = [math.atan(sigma) for sigma in sigmas]
    first, y = math.cos(theta[0]), wide(y, context)
    v, log_slope = first * y, torch.full_like(y, math.log(first))
    for k in range(steps):
        h = theta[k + 1] - theta[k]
        r, dr = head.output(context, v, sigmas[k])
        r_next, dr_next = head.output(context, v - h * r, sigmas[k + 1])
        v = v - h / 2 * (r + r_next)
        log_slope = log_slope + (1 - h / 2 * (dr + dr_next * (1 - h * dr))).clamp_min(_LEAST).log()
    return log_slope - v.square() / 2 - math.log(2 * math.pi) / 2
