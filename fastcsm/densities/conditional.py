"""Normalised one-dimensional conditionals of a score head: log-densities, distribution functions, quantiles.

Two densities go with one head. **Quadrature** integrates the score of one noise level, the last by default.
The **flow** (of a head that reads log sigma) integrates the score of the first level, where it is smooth, and
carries the result to the last along the probability flow: mode weights then come from the large noise levels,
which know them. Of a preconditioned head it starts from a Gaussian, and is normalised whatever the weights.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..functional.arguments import positive
from ..networks.any_head import Own, wide

METHODS = ("quadrature", "flow")


class Accuracy(NamedTuple):
    """How exact densities are.

    Attributes:
        tolerance: as for :func:`fastcsm.functional.conditional_density` and
            :func:`fastcsm.functional.probability_flow`.
        flow_tolerance: of the flow, where it differs.
        panels, margin: to begin with: their number, and how many sigmas outside the range of the data.
    """

    tolerance: float | None = None
    flow_tolerance: float | None = None
    panels: int = 4
    margin: float = 5.0


class LogDensity(NamedTuple):
    """Log-densities (...) in nats, estimates of their errors (...), and the probabilities (..., 2) beyond the
    panels' ends."""

    log_density: Tensor
    error: Tensor
    ends: Tensor


class _Constant(torch.autograd.Function):
    """A value that was computed without gradients: asking for one raises, and does not leave it out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "the density of method 'flow' is not differentiable: use method 'quadrature', or no_grad"
        )


class Conditionals:
    """The one-dimensional conditionals q(x_d given c_d) of a score head, for rows of contexts.

    Results are in the head's dtype, at least float32; x and probabilities may be of any floating dtype.

    Args:
        head: what :func:`fastcsm.networks.heads.of` makes of a head.
        sigmas: its noise levels, largest first; none where it is trained without noise.
        data_range: the interval that holds the data's values.
        method: "quadrature" or "flow"; by default the flow where the head reads log sigma.
        sigma: noise level of the density, of a head that reads log sigma only; the last level by default.
        base: noise level at which the score is integrated for the flow, or a preconditioned head's is
            Gaussian; the first by default. Any at which the conditionals are smooth, or Gaussian, will do,
            and a lower one leaves less of the flow's error.
        accuracy: tolerances, and where the panels begin.

    Attributes:
        sigma: the noise level of the density, 0 without noise.

    Raises:
        ValueError: the method is not known, or it or sigma needs a head that reads log sigma.
    """

    def __init__(
        self,
        head: Any,
        sigmas: Sequence[float],
        data_range: tuple[float, float],
        method: str | None = None,
        *,
        sigma: float | None = None,
        base: float | None = None,
        accuracy: Accuracy = Accuracy(),  # noqa: B008 (a NamedTuple of numbers)
    ):
        if method is None:
            method = "flow" if head.reads_level else "quadrature"
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if not head.reads_level and (method == "flow" or sigma is not None):
            given = ("method", method) if method == "flow" else ("sigma", sigma)
            raise ValueError(
                f"{given[0]} is {given[1]!r}, expected a model whose noise schedule is conditional"
            )
        if base is not None and method != "flow":
            raise ValueError(f"base is {base}, expected none with method {method!r}")
        for name, value in (("sigma", sigma), ("base", base)):
            if value is not None:
                positive(name, value)
        self.sigma = sigma or (sigmas[-1] if sigmas else 0.0)
        self._head = head
        #: The level at which the score is integrated.
        self._base = (base or sigmas[0]) if method == "flow" else self.sigma
        self._gaussian = method == "flow" and head.starts_gaussian
        self._range, self._accuracy = data_range, accuracy
        tolerance, flow_tolerance, *_ = accuracy
        self._flow_tolerance = tolerance if flow_tolerance is None else flow_tolerance

    def log_density(self, context: Tensor, x: Tensor) -> LogDensity:
        """log q(x given c) of rows: context (..., C) without log sigma, x (...).

        Differentiable by quadrature, not by the flow, whose backward pass raises RuntimeError.
        """
        own = self._own(context)
        found = self._of_own(own.context, own.of(wide(x, context)))
        return found._replace(log_density=own.density(found.log_density))

    def _of_own(self, context: Tensor, x: Tensor) -> LogDensity:
        """The density of rows in their own units."""
        if self._base == self.sigma:
            return self._of_base(context, x)
        with torch.no_grad():
            end, change, error = self._flow(context, x, (self.sigma, self._base), True)
            found = self._of_base(context, end)
            score = self._head.at(self._base).score(context, end.to(context.dtype)).abs().to(error.dtype)
            # Steps are exact to a part of their level in x, which the score makes an error of log q.
            error = found.error + error * (1 + self._base * score)
            exists = found.log_density.isfinite()
            error = torch.where(exists, error, torch.inf)
            log_density = torch.where(exists, found.log_density - change, torch.nan)
        log_density = _Constant.apply(log_density, context, x, *self._head.parameters())
        return LogDensity(log_density, error, found.ends)

    def _of_base(self, context: Tensor, x: Tensor) -> LogDensity:
        """The density where the flow starts."""
        if self._gaussian:
            log_density = self._head.base(x, self._base)
            there = log_density.isfinite()
            error = torch.where(there, torch.zeros_like(x), torch.inf)
            log_density = torch.where(there, log_density, torch.nan)
            return LogDensity(log_density, error, x.new_zeros(*x.shape, 2))
        found = self._integrate(context, x, False)
        return LogDensity(found.log_density, found.error, found.ends)

    @torch.no_grad()
    def cdf(self, context: Tensor, x: Tensor) -> Tensor:
        """P(X <= x given c) of rows; the flow keeps it, being monotone."""
        own = self._own(context)
        end = self._flow(own.context, own.of(wide(x, context)), (self.sigma, self._base))[0]
        if self._gaussian:
            return torch.special.ndtr(end / self._head.prior(torch.ones_like(end), self._base))
        return self._integrate(own.context, end, False).cdf

    @torch.no_grad()
    def quantile(self, context: Tensor, u: Tensor) -> Tensor:
        """x with P(X <= x given c) = u of rows."""
        own = self._own(context)
        if self._gaussian:
            x = self._head.prior(torch.special.ndtri(wide(u, context)), self._base)
        else:
            x = self._integrate(own.context, u, True).point
        carried = self._flow(own.context, x, (self._base, self.sigma))[0]
        return own.back(torch.where(x.isinf(), x, carried))

    def interval(self) -> functional.Interval:
        """Where the panels begin."""
        low, high = self._range
        margin = self._accuracy.margin * self._base
        return functional.Interval(
            low - margin, high + margin, self._accuracy.tolerance, self._accuracy.panels
        )

    def draw_options(self) -> dict[str, Any]:
        """Of :func:`fastcsm.functional.conditional_density_draw`, for draws of the same conditionals."""
        levels = [self._base, self.sigma] if self._base != self.sigma else [self.sigma]
        sigmas = levels if self._head.reads_level else []
        return {"interval": self.interval(), "sigmas": sigmas, "flow_tolerance": self._flow_tolerance}

    def _integrate(self, context: Tensor, x: Tensor, inverse: bool) -> functional.Density:
        return self._head.at(self._base).density(context, x, self.interval(), inverse)

    def _own(self, context: Tensor) -> Own:
        return self._head.own(context, context.shape[-2] if context.dim() > 1 else 1)

    def _flow(
        self, context: Tensor, x: Tensor, levels: tuple[float, float], change: bool = False
    ) -> tuple[Tensor, Any, Any]:
        if levels[0] == levels[1]:
            return x, None, None
        return self._head.flow(context, x, levels, self._flow_tolerance, change)
