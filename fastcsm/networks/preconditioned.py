"""Preconditioned heads: scores from a network whose inputs and outputs are of the order of 1.

With noise level sigma, and a centre m and a scale tau of the row,

    s = a F(c, ln(sigma / tau), u) - kappa^2 (x - m),
    kappa = 1 / sqrt(sigma^2 + tau^2),  a = tau kappa / sigma,

F being the head and u = u0 asinh(kappa (x - m) / u0); see :mod:`fastcsm.reference.preconditioning`. F = 0 is
the exact score of N(m, tau^2) with noise. m and tau are 0 and 1, of a standardised variable, or the last two
context features say them.

The probability flow starts from the Gaussian N(m, sigma_1^2 + tau^2) itself. It is a diffeomorphism, so every
context's density is normalised whatever the weights, every finite row has one, and no mass can leak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import Density, Flow, Interval, Stages
from ..reference.preconditioning import SQUASH, squashed
from .any_head import AnyHead, Rows, wide, with_feature
from .context import LinearContext

#: ln(tau) that a context network says stays within so much of 0.
MAX_LOG_SCALE = 6.0
#: Where the quadrature of v begins, whose deviation is about 1.
_INTERVAL = 6.0


class Moments(NamedTuple):
    """Contexts (..., C) that remain, and the centre m and ln(tau) of their rows (...), or numbers."""

    context: Any
    centre: float | Tensor
    log_scale: float | Tensor


class Preconditioned(AnyHead):
    """A preconditioned head, at all noise levels.

    Args:
        head: what :func:`fastcsm.networks.heads.of` makes of a head with C + 1 context features, the last of
            which is ln(sigma / tau).
        squash: u0.
        moments: whether the last two context features are the row's m and ln(tau), the latter bounded by
            6 tanh(ln(tau) / 6), and no part of what the head reads.
    """

    starts_gaussian = True

    def __init__(self, head: Any, squash: float = SQUASH, moments: bool = False):
        self.reads_level = True
        self._head, self._squash, self._moments = head, squash, moments

    def parameters(self) -> Iterator[Tensor]:
        """The head's weights and biases."""
        return self._head.parameters()

    def moments(self, context: Any) -> Moments:
        """The contexts without the moments they end with, and those."""
        if not self._moments:
            return Moments(context, 0.0, 0.0)
        bounded = MAX_LOG_SCALE * torch.tanh(context[..., -1] / MAX_LOG_SCALE)
        return Moments(context[..., :-2], context[..., -2], bounded)

    def stages(self, step_sizes: Sequence[float], steps: int, sigmas: Sequence[float]) -> Stages:
        """Stages of Langevin dynamics, one a noise level."""
        return Stages(step_sizes, steps, None, [math.log(sigma) for sigma in sigmas])

    def prior(self, z: Tensor, context: Tensor, sigma: float) -> Tensor:
        """N(m, sigma^2 + tau^2) from standard normal z (...), for contexts (..., C)."""
        _, centre, log_scale = self.moments(context)
        return centre + z / _kappa(sigma, log_scale, z)

    def base(self, context: Tensor, sigma: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x - m) kappa, standard normal at a level that is far above tau; and ln(kappa) like x."""
        _, centre, log_scale = self.moments(context)
        kappa = _kappa(sigma, log_scale, x)
        return (x - centre) * kappa, kappa.log()

    @torch.no_grad()
    def flow(
        self, context: Tensor, x: Tensor, levels: tuple[float, float], tolerance: float | None, change: bool
    ) -> Flow:
        """x carried from the first of two noise levels to the second."""
        x = wide(x, context)
        v, log_from = self.base(context, levels[0], x)
        offset, log_scale = self._with_offset(context)
        found = self._head.flow(offset, v, levels, tolerance, change, squash=self._squash)
        kappa = _kappa(levels[1], log_scale, x)
        point = self.moments(context).centre + found.point / kappa
        return Flow(point, found.change + kappa.log() - log_from, found.error)

    def density(self, context: Tensor, x: Tensor, interval: Interval, inverse: bool, sigma: float) -> Density:
        """As of any head; where the panels begin is known."""
        x = wide(x, context)
        v, log_kappa = self.base(context, sigma, x)
        interval = interval._replace(low=-_INTERVAL, high=_INTERVAL)
        own = {"sigma": sigma, "squash": self._squash}
        found = self._head.density(
            self._with_offset(context)[0], x if inverse else v, interval, inverse, **own
        )
        point = self.moments(context).centre + found.point / log_kappa.exp() if inverse else x
        log_density = found.log_density + log_kappa
        return found._replace(point=point, log_density=log_density)

    def langevin(self, context: Tensor, x: Tensor, stages: Stages, **numbers: Any) -> Tensor:
        """:func:`fastcsm.functional.langevin`; ``numbers`` are seed, samples, dimensions and first_step."""
        offset, log_scale = self._with_offset(context)
        centre, scale = self.moments(context).centre, _exp(log_scale)
        y = self._head.langevin(offset, (x - centre) / scale, stages, squash=self._squash, **numbers)
        return centre + scale * y

    def at_level(self, context: Any, x: Tensor, sigma: float | Tensor) -> Rows:
        if self._moments and isinstance(context, LinearContext):
            context = context.whole(x.shape[-1])
        context, centre, log_scale = self.moments(context)
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).log() - log_scale
        own = level.exp()  # sigma / tau
        y = (x - centre) * _exp(-log_scale)
        kappa = torch.rsqrt(1 + own.square())
        v = kappa * y
        u, slope = squashed(v, self._squash)
        kappa = kappa * _exp(-log_scale)
        context = with_feature(context, level.expand_as(x))
        return Rows(
            self._head, context, u, slope * kappa, kappa / own, -kappa * v, -kappa.square().expand_as(x)
        )

    def _with_offset(self, context: Tensor) -> tuple[Tensor, float | Tensor]:
        """Contexts that end with -ln(tau), as the ops take them, and ln(tau)."""
        context, _, log_scale = self.moments(context)
        return with_feature(context, -log_scale), log_scale


def _exp(value: float | Tensor) -> Any:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def _kappa(sigma: float, log_scale: float | Tensor, like: Tensor) -> Tensor:
    """1 / sqrt(sigma^2 + tau^2) in the dtype of ``like``."""
    scale = torch.as_tensor(_exp(log_scale), dtype=like.dtype, device=like.device)
    return torch.hypot(scale, torch.full_like(scale, sigma)).reciprocal()
