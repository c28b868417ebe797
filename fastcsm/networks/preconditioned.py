"""Preconditioned heads: scores from a network whose inputs and outputs are of the order of 1.

A variable has a centre m and a scale tau, and noise levels sigma in units of tau. With y = (x - m) / tau,

    s(y) = a F(c, ln(sigma), u) - kappa^2 y,    kappa = 1 / sqrt(sigma^2 + 1),  a = kappa / sigma,

F being the head and u = u0 asinh(kappa y / u0); see :mod:`fastcsm.reference.preconditioning`. F = 0 is the
exact score of N(m, tau^2) with noise. m and tau are 0 and 1, of a standardised variable, or the context
network says them: its last two features, which the head does not read, are m and ln(tau).

The probability flow starts from the Gaussian N(0, sigma_1^2 + 1) of y itself. It is a diffeomorphism, so the
density of every context is normalised whatever the weights, every finite row has one, and no mass can leak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import Density, Flow, Interval, Stages
from ..reference.preconditioning import SQUASH, squashed
from .any_head import AnyHead, Own, Rows, wide, with_feature, with_level
from .context import LinearContext
from .score_head import ScoreHead

#: ln(tau) that a context network says stays within so much of 0.
MAX_LOG_SCALE = 6.0
#: Where the quadrature of kappa y begins, whose deviation is about 1.
_INTERVAL = 6.0


class Preconditioned(AnyHead):
    """A preconditioned head, at all noise levels; x is y, in its own units, but where :meth:`own` is asked.

    Args:
        head: what :func:`fastcsm.networks.heads.of` makes of a head with C + 1 context features, the last of
            which is ln(sigma).
        moments: whether contexts have two more features, m and ln(tau), the latter as 6 tanh(ln(tau) / 6).
        squash: u0.
    """

    reads_level = True
    starts_gaussian = True

    def __init__(self, head: Any, moments: bool = False, squash: float = SQUASH):
        self._head, self._moments, self._squash = head, moments, squash

    def parameters(self) -> Iterator[Tensor]:
        """The head's weights and biases."""
        return self._head.parameters()

    def own(self, context: Any, dimensions: int) -> Own:
        """Contexts (..., C) as the head takes them, and the centre and log scale of their variables."""
        if not self._moments:
            return Own(context)
        if isinstance(context, LinearContext):
            context = context.whole(dimensions)
        log_scale = MAX_LOG_SCALE * torch.tanh(context[..., -1] / MAX_LOG_SCALE)
        return Own(context[..., :-2], context[..., -2], log_scale)

    def stages(self, step_sizes: Sequence[float], steps: int, sigmas: Sequence[float]) -> Stages:
        """Stages of Langevin dynamics, one a noise level."""
        return Stages(step_sizes, steps, None, [math.log(sigma) for sigma in sigmas])

    def prior(self, z: Tensor, sigma: float) -> Tensor:
        """N(0, sigma^2 + 1) from standard normal z (...)."""
        return z * math.hypot(1.0, sigma)

    def base(self, x: Tensor, sigma: float) -> Tensor:
        """ln N(x; 0, sigma^2 + 1), (...)."""
        kappa = 1 / math.hypot(1.0, sigma)
        return math.log(kappa) - math.log(2 * math.pi) / 2 - (kappa * x).square() / 2

    @torch.no_grad()
    def flow(
        self, context: Tensor, x: Tensor, levels: tuple[float, float], tolerance: float | None, change: bool
    ) -> Flow:
        """x carried from the first of two noise levels to the second."""
        first, last = (1 / math.hypot(1.0, sigma) for sigma in levels)
        v = first * wide(x, context)
        found = self._head.flow(with_feature(context, 0.0), v, levels, tolerance, change, squash=self._squash)
        return Flow(found.point / last, found.change + math.log(last / first), found.error)

    def density(self, context: Tensor, x: Tensor, interval: Interval, inverse: bool, sigma: float) -> Density:
        """As of any head; where the panels begin is known."""
        kappa, x = 1 / math.hypot(1.0, sigma), wide(x, context)
        interval = interval._replace(low=-_INTERVAL, high=_INTERVAL)
        own = {"sigma": sigma, "squash": self._squash}
        rows = with_feature(context, 0.0), x if inverse else kappa * x
        found = self._head.density(*rows, interval, inverse, **own)
        point = found.point / kappa if inverse else x
        return found._replace(point=point, log_density=found.log_density + math.log(kappa))

    def langevin(self, context: Tensor, x: Tensor, stages: Stages, **numbers: Any) -> Tensor:
        """As of any head; ``numbers`` are seed, samples, dimensions and first_step."""
        return self._head.langevin(with_feature(context, 0.0), x, stages, squash=self._squash, **numbers)

    def output(self, context: Any, v: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """r and dr / dv, like v, of the flow dv / d theta = -r, theta = atan(sigma), at v = kappa y (...)."""
        u, slope = squashed(v, self._squash)
        r, dr = self._head.score_and_derivative(with_level(context, sigma), u.to(context.dtype))
        return r.to(v.dtype), dr.to(v.dtype) * slope

    def at_level(self, context: Any, x: Tensor, sigma: float | Tensor) -> Rows:
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        kappa = torch.rsqrt(1 + level.square())
        v = kappa * x
        u, slope = squashed(v, self._squash)
        shifts = -kappa * v, -kappa.square()
        return Rows(self._head, with_level(context, sigma), u, slope * kappa, kappa / level, *shifts)


@torch.no_grad()
def initialise(head: ScoreHead, levels: tuple[float, float]) -> None:
    """Draw a head's first layer anew, so that its units bend all over the inputs of a preconditioned head.

    Features are of the order of 1, but for ln(sigma), which spans several units, where the usual bounds leave
    all units alike. The last layer begins a tenth as large: F = 0 is a Gaussian.

    Args:
        head: reads contexts, ln(sigma), u.
        levels: the largest and the smallest.

    Random numbers are those of torch's global generator.
    """
    weight, bias = head.weights[0], head.biases[0]
    c, units = head.context_features - 1, len(bias)
    largest, smallest = map(math.log, levels)
    weight[:, :c].normal_(0.0, max(c, 1) ** -0.5)
    weight[:, c].normal_(0.0, 0.5)
    weight[:, c + 1].normal_(0.0, 1.0)
    u = 1.5 * torch.randn(units, dtype=weight.dtype)
    level = smallest + (largest - smallest) * torch.rand(units, dtype=weight.dtype)
    bias.copy_(-(weight[:, c + 1] * u + weight[:, c] * level))
    head.weights[-1].mul_(0.1)
    head.biases[-1].zero_()
