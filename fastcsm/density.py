"""Normalised conditionals of a trained model: log-densities, distribution functions and quantiles of rows.

Two densities go with one model. **Quadrature** integrates the score of one noise level, the last by default.
The **flow** (conditional form only) integrates the score of the first level, where it is smooth, and carries
the result to the last along the probability flow: mode weights then come from the large noise levels, which
know them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import functional, losses
from .arguments import tolerance as default_tolerance
from .reference import probability_flow as flow
from .reference import quadrature

if TYPE_CHECKING:
    from .nn import ARCSM

METHODS = ("quadrature", "flow")
#: The panels begin this many sigmas outside the range of the data, by default.
MARGIN = 5.0


class LogDensity(NamedTuple):
    """Log-densities (...) in nats, estimates of their errors (...), and the probabilities (..., 2) beyond the
    panels' ends."""

    log_density: Tensor
    error: Tensor
    ends: Tensor


class Conditionals:
    """The one-dimensional conditionals q(x_d given c_d) of a model, for rows of contexts.

    Args:
        model: a trained :class:`fastcsm.nn.ARCSM`. Of a staged one the current parameters are used.
        method: "quadrature" or "flow"; by default the flow where the model is conditional.
        sigma: noise level of the density, conditional form only; the last level by default.
        base: noise level at which the score is integrated for the flow; the first by default. Any at which
            the conditionals are smooth will do, and a lower one leaves less of the flow's error.
        tolerance: as for :func:`fastcsm.functional.conditional_density` and
            :func:`fastcsm.functional.probability_flow`.
        flow_tolerance: of the flow, where it differs.
        panels, margin: to begin with: their number, and how many sigmas outside the range of the data.

    Raises:
        ValueError: the method is not known, or it or sigma needs a conditional model.
    """

    def __init__(
        self,
        model: ARCSM,
        method: str | None = None,
        *,
        sigma: float | None = None,
        base: float | None = None,
        tolerance: float | None = None,
        flow_tolerance: float | None = None,
        panels: int = 4,
        margin: float = MARGIN,
    ):
        if method is None:
            method = "flow" if model.conditional else "quadrature"
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if not model.conditional and (method == "flow" or sigma is not None):
            given = ("method", method) if method == "flow" else ("sigma", sigma)
            raise ValueError(
                f"{given[0]} is {given[1]!r}, expected a model whose noise schedule is conditional"
            )
        if base is not None and method != "flow":
            raise ValueError(f"base is {base}, expected none with method {method!r}")
        for name, value in (("sigma", sigma), ("base", base)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, got {value}")
        self._head = model.head
        self._found = losses.head_parameters(model.head)
        self._conditional = model.conditional
        self._range = model.data_range
        levels = model.noise.sigmas if model.noise else [0.0]
        self._sigma = sigma or (levels[model.stage] if model.staged else levels[-1])
        #: The level at which the score is integrated.
        self._base = (base or levels[0]) if method == "flow" else self._sigma
        self._tolerance, self._panels, self._margin = tolerance, panels, margin
        self._flow_tolerance = tolerance if flow_tolerance is None else flow_tolerance

    def log_density(self, context: Tensor, x: Tensor) -> LogDensity:
        """log q(x given c) of rows: context (..., C) without log sigma, x (...).

        Differentiable by quadrature, not by the flow.
        """
        if self._base == self._sigma:
            found = self._integrate(context, x, False)
            return LogDensity(found.log_density, found.error, found.ends)
        with torch.no_grad():
            x, change, error = self._flow(context, x, self._sigma, self._base, True)
            found = self._integrate(context, x, False)
            return LogDensity(found.log_density - change, found.error + error, found.ends)

    @torch.no_grad()
    def cdf(self, context: Tensor, x: Tensor) -> Tensor:
        """P(X <= x given c) of rows; the flow keeps it, being monotone."""
        return self._integrate(context, self._flow(context, x, self._sigma, self._base)[0], False).cdf

    @torch.no_grad()
    def quantile(self, context: Tensor, u: Tensor) -> Tensor:
        """x with P(X <= x given c) = u of rows."""
        x = self._integrate(context, u, True).point
        return self._flow(context, x.to(u.dtype), self._base, self._sigma)[0].to(u.dtype)

    def options(self) -> dict[str, Any]:
        """Of :func:`fastcsm.functional.conditional_density_draw`, for draws of the same conditionals."""
        levels = [self._base, self._sigma] if self._base != self._sigma else [self._sigma]
        sigmas = levels if self._conditional else []
        return self._interval() | {"sigmas": sigmas, "flow_tolerance": self._flow_tolerance}

    def _interval(self) -> dict[str, Any]:
        margin = self._margin * self._base
        return {
            "low": self._range[0] - margin,
            "high": self._range[1] + margin,
            "tolerance": self._tolerance,
            "panels": self._panels,
        }

    def _integrate(self, context: Tensor, x: Tensor, inverse: bool) -> functional.Density:
        options = self._interval() | {"inverse": inverse}
        if self._conditional:
            options |= {"score_scale": 1 / self._base, "stage_feature": math.log(self._base)}
        found = self._found
        if isinstance(found, losses.HeadParameters):
            return functional.conditional_density(
                context,
                x,
                found.weights,
                found.biases,
                activation=found.activation,
                frequencies=found.frequencies,
                **options,
            )
        rows = context.reshape(-1, context.shape[-1])

        def score(index: Tensor, t: Tensor) -> Tensor:
            own = rows[index].unsqueeze(1).expand(-1, t.shape[1], -1)
            context = self._levels(own, torch.full_like(t, self._base))
            value = losses.score(self._head, context, t.to(rows.dtype)).double()
            return value / self._base if self._conditional else value

        result = quadrature.solve(
            score,
            options["low"],
            options["high"],
            x.reshape(-1).double(),
            inverse,
            default_tolerance(self._tolerance, x),
            self._panels,
            torch.finfo(x.dtype).eps,
        )
        values = [value.to(x.dtype) for value in result]
        shaped = [value.reshape(x.shape) for value in values[:-1]]
        return functional.Density._make([*shaped, values[-1].reshape(*x.shape, 2)])

    def _flow(
        self, context: Tensor, x: Tensor, start: float, end: float, change: bool = False
    ) -> tuple[Tensor, Any, Any]:
        if start == end:
            return x, None, None
        found = self._found
        with torch.no_grad():
            if isinstance(found, losses.HeadParameters):
                return functional.probability_flow(
                    context,
                    x,
                    found.weights,
                    found.biases,
                    activation=found.activation,
                    frequencies=found.frequencies,
                    sigma_from=start,
                    sigma_to=end,
                    tolerance=self._flow_tolerance,
                    change=change,
                )
            rows = context.reshape(-1, context.shape[-1])

            def output(index: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
                own, t = self._levels(rows[index], sigma), t.to(rows.dtype)
                if not change:
                    return losses.score(self._head, own, t).double(), torch.zeros_like(sigma)
                s, ds = losses.score_and_derivative(self._head, own, t)
                return s.double(), ds.double()

            result = flow.solve(
                output,
                x.reshape(-1).double(),
                start,
                end,
                default_tolerance(self._flow_tolerance, x),
                change,
            )
            y, dlog, error = (value.to(x.dtype).reshape(x.shape) for value in result)
            return y, dlog, error

    def _levels(self, context: Tensor, sigma: Tensor) -> Tensor:
        """Contexts with log sigma, where the head reads it."""
        if not self._conditional:
            return context
        return torch.cat([context, sigma.log().to(context.dtype).unsqueeze(-1)], -1)
