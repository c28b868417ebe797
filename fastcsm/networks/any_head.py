"""What all heads have in common: the rows of a loss, one noise level, features at the end of contexts.

The one place where log sigma becomes the last context feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import Density, Interval, Stages
from .context import LinearContext

#: alpha, beta and gamma of a loss: the sum over rows of alpha r^2 / 2 + beta r' + gamma r, r the output.
Coefficients = tuple[float | Tensor, float | Tensor, float | Tensor]


class Rows(NamedTuple):
    """The score of rows x as what a loss asks of a head, r being its output: s = scale r(u) + shift.

    Attributes:
        head: which computes r and dr / du.
        context, u: its inputs, (..., C) or a LinearContext, and (...).
        slope: du / dx. With the two below s' = scale slope dr / du + shift_slope.
        scale, shift, shift_slope: numbers, or (...).
    """

    head: Any
    context: Any
    u: Tensor
    slope: float | Tensor = 1.0
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    shift_slope: float | Tensor = 0.0


class Own(NamedTuple):
    """Contexts (..., C) and the units of the rows given to them: y = (x - centre) / exp(log_scale).

    Attributes:
        context: as the calls of a head take them.
        centre, log_scale: (...), or None for rows as they are.
    """

    context: Any
    centre: Tensor | None = None
    log_scale: Tensor | None = None

    def detached(self) -> Own:
        """The same units as constants."""
        if self.centre is None or self.log_scale is None:
            return self
        return self._replace(centre=self.centre.detach(), log_scale=self.log_scale.detach())

    def of(self, x: Tensor) -> Tensor:
        """y (...) of x (...)."""
        if self.centre is None or self.log_scale is None:
            return x
        return (x - self.centre.to(x.dtype)) * (-self.log_scale).exp().to(x.dtype)

    def back(self, y: Tensor) -> Tensor:
        """x (...) of y (...)."""
        if self.centre is None or self.log_scale is None:
            return y
        return self.centre.to(y.dtype) + y * self.log_scale.exp().to(y.dtype)

    def density(self, log_density: Tensor) -> Tensor:
        """ln q(x), (...), of ln q(y)."""
        return log_density if self.log_scale is None else log_density - self.log_scale.to(log_density.dtype)

    def score(self, score: Tensor) -> Tensor:
        """d ln q / dx, (...), of d ln q / dy."""
        return score if self.log_scale is None else score * (-self.log_scale).exp()


class AnyHead:
    """What all kinds have in common."""

    reads_level: bool
    #: Whether the flow starts from a Gaussian, which ``base`` says, not from the density of a level.
    starts_gaussian = False

    score_and_derivative: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def own(self, context: Any, dimensions: int) -> Own:
        """Contexts as the other calls take them, and the units of the rows given to those."""
        return Own(context)

    def at(self, sigma: float | Tensor) -> Any:
        """The score of one noise level, a number or one a row; of a head that reads no level, the head."""
        return AtLevel(self, sigma) if self.reads_level else self

    def rows(self, context: Any, x: Tensor) -> Rows:
        """What a loss asks of the head."""
        return Rows(self, context, x)

    def at_level(self, context: Any, x: Tensor, sigma: float | Tensor) -> Rows:
        """What a loss at noise level sigma, a number or (...), asks of a head that reads the level."""
        scale = sigma.reciprocal() if isinstance(sigma, Tensor) else 1 / sigma
        return Rows(self, with_level(context, sigma), x, scale=scale)

    def prior(self, z: Tensor, sigma: float) -> Tensor:
        """Where a chain of Langevin dynamics starts, from standard normal z (...): there."""
        return z

    def stages(self, step_sizes: Sequence[float], steps: int, sigmas: Sequence[float]) -> Stages:
        """Stages of Langevin dynamics, one a noise level."""
        if not self.reads_level:
            return Stages(step_sizes, steps)
        scales, levels = [1 / sigma for sigma in sigmas], [math.log(sigma) for sigma in sigmas]
        return Stages(step_sizes, steps, scales, levels)

    def loss_of_rows(self, context: Tensor | LinearContext, x: Tensor, coefficients: Coefficients) -> Tensor:
        """alpha r^2 / 2 + beta r' + gamma r of every row, at least in float32."""
        alpha, beta, gamma = coefficients
        context = context.whole(x.shape[-1]) if isinstance(context, LinearContext) else context
        r, dr = self.score_and_derivative(context, x)
        if r.dtype.itemsize < 4:
            r, dr = r.float(), dr.float()
        return alpha * r * r / 2 + beta * dr + gamma * r


class AtLevel:
    """The score of one noise level of a head that reads log sigma; made by ``head.at(sigma)``."""

    def __init__(self, head: Any, sigma: float | Tensor):
        self._head, self._sigma = head, sigma

    def rows(self, context: Any, x: Tensor) -> Rows:
        """What a loss asks of the head."""
        return self._head.at_level(context, x, self._sigma)

    def score(self, context: Tensor, x: Tensor) -> Tensor:
        """s (...) of x (...) given contexts (..., C) without log sigma."""
        head, context, u, _, scale, shift, _ = self.rows(context, x)
        return scale * head.score(context, u) + shift

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and s', each (...)."""
        head, context, u, slope, scale, shift, shift_slope = self.rows(context, x)
        s, ds = head.score_and_derivative(context, u)
        return scale * s + shift, scale * slope * ds + shift_slope

    def density(self, context: Tensor, x: Tensor, interval: Interval, inverse: bool) -> Density:
        """As :meth:`Fused.density`."""
        return self._head.density(context, x, interval, inverse, self._sigma)


def with_level(context: Any, sigma: float | Tensor) -> Any:
    """Contexts (..., C) with log sigma as the last feature; sigma a number or (...)."""
    return with_feature(context, sigma.log() if isinstance(sigma, Tensor) else math.log(sigma))


def with_feature(context: Any, value: float | Tensor) -> Any:
    """Contexts (..., C), or a LinearContext, with one more feature, a number or (...), in the end."""
    if isinstance(context, LinearContext):
        return context._replace(extra=value.unsqueeze(-1))
    if isinstance(value, Tensor):
        return torch.cat([context, value.to(context.dtype).unsqueeze(-1)], -1)
    return torch.cat([context, context.new_full((*context.shape[:-1], 1), value)], -1)


def wide(x: Tensor, like: Tensor) -> Tensor:
    """x in the dtype of ``like``, at least float32."""
    return x.to(torch.promote_types(like.dtype, torch.float32))
