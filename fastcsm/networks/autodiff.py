"""Heads that are called and differentiated twice, with the reason why."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import random
from ..functional import Density, Flow, Interval, Stages
from ..functional.arguments import tolerance as default_tolerance
from ..reference import preconditioning, probability_flow, quadrature
from .any_head import AnyHead, Coefficients, wide, with_feature, with_level
from .context import LinearContext
from .readable import ReadableHead, calling, is_lazy

_warned: set[str] = set()


class ByAutodiff(AnyHead):
    """A head that is called, its derivative by autograd: what autograd can differentiate twice is right.

    Attributes:
        module: the head.
        reason: why it does not run fused.
    """

    def __init__(self, module: Callable[[Tensor], Tensor], reason: str, reads_level: bool = False):
        self.reads_level, self.module, self.reason = reads_level, module, reason

    def parameters(self) -> Iterator[Tensor]:
        """The head's parameters, where it is a module."""
        return self.module.parameters() if isinstance(self.module, nn.Module) else iter(())

    def score(self, context: Tensor, x: Tensor) -> Tensor:
        """s (...) of x (...) given contexts (..., C)."""
        if isinstance(self.module, ReadableHead):
            output = self.module(context, x)
        else:
            output = self.module(torch.cat([context, x.unsqueeze(-1)], -1))
        if output.shape not in (x.shape, (*x.shape, 1)):
            raise ValueError(
                f"head must return shape {(*x.shape, 1)} or {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        return output.reshape(x.shape)

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and s', each (...)."""
        if not torch.compiler.is_compiling() and not is_lazy(self.module):
            _warn_once(f"the score head runs by double backward, not fused: {self.reason}")
        if context.shape[:-1] != x.shape or context.dim() == 0:
            raise ValueError(
                f"x must have the shape of context without its last axis, {tuple(context.shape[:-1])},"
                f" got {tuple(x.shape)}"
            )
        if torch.compiler.is_compiling():  # autograd.grad cannot be traced
            s, pull = torch.func.vjp(lambda x: self.score(context, x), x)[:2]
            return s, pull(torch.ones_like(s))[0]
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad(), calling():
            if x.is_inference() or context.is_inference():
                context, x = context.clone(), x.clone()
            # A view, as the context may depend on x.
            x = x.view_as(x) if recording and x.requires_grad else x.detach().requires_grad_()
            s = self.score(context, x)
            if not s.requires_grad:
                return s, torch.zeros_like(s)
            (ds,) = torch.autograd.grad(s.sum(), x, create_graph=recording, materialize_grads=True)
        return s if recording else s.detach(), ds

    def csm_loss(self, context: Tensor | LinearContext, x: Tensor, coefficients: Coefficients) -> Tensor:
        """Sum over rows of alpha r^2 / 2 + beta r' + gamma r."""
        return self.loss_of_rows(context, x, coefficients).sum()

    def density(
        self,
        context: Tensor,
        x: Tensor,
        interval: Interval,
        inverse: bool,
        sigma: float | None = None,
        squash: float | None = None,
    ) -> Density:
        """As :func:`fastcsm.functional.conditional_density`."""
        x, rows = wide(x, context), context.reshape(-1, context.shape[-1])
        rho = rows.new_ones(len(rows), 1).double()
        if squash and sigma is not None:
            rho = preconditioning.rho(rows, math.log(sigma))[:, None]
            rows = preconditioning.at_level(rows, math.log(sigma))
        elif sigma is not None:
            rows = with_level(rows, sigma)

        def score(index: Tensor, t: Tensor) -> Tensor:
            own = rows[index].unsqueeze(1).expand(-1, t.shape[1], -1)
            u = preconditioning.squashed(t, squash).u if squash else t
            r = self.score(own, u.to(rows.dtype)).double()
            return rho[index] * r - t if squash else r / (sigma or 1.0)

        low, high, tolerance, panels = interval
        tolerance = default_tolerance(tolerance, x)
        unit = torch.finfo(rows.dtype).eps
        found = quadrature.solve(score, low, high, x.reshape(-1).double(), inverse, tolerance, panels, unit)
        values = quadrature.rounded(found, x.dtype, inverse)
        shaped = [value.reshape(x.shape) for value in values[:-1]]
        return Density._make([*shaped, values[-1].reshape(*x.shape, 2)])

    @torch.no_grad()
    def flow(
        self,
        context: Tensor,
        x: Tensor,
        levels: tuple[float, float],
        tolerance: float | None,
        change: bool,
        squash: float | None = None,
    ) -> Flow:
        """As :func:`fastcsm.functional.probability_flow`."""
        x, rows = wide(x, context), context.reshape(-1, context.shape[-1])
        own: tuple[Any, Any] = levels
        if squash:
            tau = preconditioning.rho(rows, 0.0)
            rows, own = rows[:, :-1], (levels[0] / tau, levels[1] / tau)

        def output(index: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            c = with_level(rows[index], sigma)
            u, slope = preconditioning.squashed(t, squash) if squash else (t, torch.ones_like(t))
            if not change:
                return self.score(c, u.to(rows.dtype)).double(), torch.zeros_like(sigma)
            s, ds = self.score_and_derivative(c, u.to(rows.dtype))
            return s.double(), slope * ds.double()

        tolerance = default_tolerance(tolerance, x)
        found = probability_flow.solve(output, x.reshape(-1).double(), own, tolerance, change, bool(squash))
        return Flow._make(value.to(x.dtype).reshape(x.shape) for value in found)

    def langevin(
        self, context: Tensor, x: Tensor, stages: Stages, *, squash: float | None = None, **numbers: Any
    ) -> Tensor:
        """As :func:`fastcsm.functional.langevin`."""
        seed, samples, dimensions = numbers["seed"], numbers["samples"], numbers["dimensions"]
        step, given = numbers["first_step"], context.reshape(-1, context.shape[-1])
        scales = stages.score_scales or [1.0] * len(stages.step_sizes)
        for index, (size, scale) in enumerate(zip(stages.step_sizes, scales, strict=True)):
            c, drift, spread = context, x.new_tensor(size / 2), x.new_tensor(math.sqrt(size))
            if squash and stages.features is not None:
                level = stages.features[index]
                tau, rho = (preconditioning.rho(given, f).reshape(x.shape).to(x) for f in (0.0, level))
                c = preconditioning.at_level(context, level)
                drift, spread, kappa = drift / tau.square(), spread / tau, preconditioning.kappa(rho)
            elif stages.features is not None:
                c = with_feature(context, stages.features[index])
            for _ in range(stages.steps):
                if squash:
                    v = kappa * x
                    s = kappa * (rho * self.score(c, preconditioning.squashed(v, squash).u) - v)
                else:
                    s = scale * self.score(c, x)
                x = x + drift * s + spread * random.normal(seed, samples, dimensions, step, x.dtype)
                step += 1
        return x


def _warn_once(message: str) -> None:
    if message in _warned:
        return
    _warned.add(message)
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(__package__.partition(".")[0] + "."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)  # where the package was called
