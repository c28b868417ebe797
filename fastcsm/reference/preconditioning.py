"""Preconditioned heads: scores from a network whose inputs and outputs are of the order of 1.

A row of centre m and scale tau at noise level sigma is the row y = (x - m) / tau at the level sigma / tau,
its own. With rho = tau / sigma, kappa = 1 / sqrt(1 + rho^-2) and v = kappa y, whose deviation is about 1,

    s = kappa (rho r - v),    r = F(c, ln(sigma / tau), u),    u = u0 asinh(v / u0),

F being the head. F = 0 is the exact score of N(m, tau^2) with noise; far out u grows as a logarithm and r
with it, so that -v wins: a density exists whatever the weights.

With theta = atan(sigma / tau) the probability flow is dv / d theta = -r, and d log q / d theta = r' along it,
r' = dr / dv: no factor grows with the level, at either end.

Ops take u0 as ``squash``, 0 for a plain head; contexts then have all C features, the last of which is
-ln(tau), to which the op adds ln(sigma).
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: u0 of a model that does not say another.
SQUASH = 2.0


class Input(NamedTuple):
    """What the head reads for v, and its derivative in v."""

    u: Tensor
    derivative: Tensor


def squashed(v: Tensor, squash: float) -> Input:
    """u0 asinh(v / u0) and its derivative 1 / sqrt(1 + (v / u0)^2), of the shape of v."""
    t = v / squash
    return Input(squash * torch.asinh(t), torch.hypot(torch.ones_like(t), t).reciprocal())


def rho(context: Tensor, log_sigma: float) -> Tensor:
    """tau / sigma, float64, of rows whose contexts (N, C) end with -ln(tau)."""
    return (-(context[:, -1].to(torch.float64) + log_sigma)).exp()


def kappa(rho: Tensor) -> Tensor:
    """1 / sqrt(1 + rho^-2)."""
    return torch.hypot(torch.ones_like(rho), rho.reciprocal()).reciprocal()


def at_level(context: Tensor, log_sigma: float) -> Tensor:
    """Contexts (..., C) with log sigma added to the last feature."""
    return torch.cat([context[..., :-1], context[..., -1:] + log_sigma], -1)
