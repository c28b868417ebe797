"""Any score head as the calls that run it: fused, or called and differentiated twice, with the reason why.

The one place where log sigma becomes the last context feature.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional, random
from ..functional import Density, Flow, Interval, Stages
from ..functional.arguments import tolerance as default_tolerance
from ..functional.csm_loss import of_head as csm_loss_of_head
from ..reference import probability_flow, quadrature
from .context import LinearContext
from .readable import ReadableHead, calling, is_lazy, layers_of

#: alpha, beta and gamma of a loss: the sum over rows of alpha r^2 / 2 + beta r' + gamma r, r the output.
Coefficients = tuple[float | Tensor, float | Tensor, float | Tensor]

_warned: set[str] = set()


class Part(NamedTuple):
    """One set of parameters and the noise levels it serves, largest first; none for a model without noise."""

    context_net: nn.Module
    head: Fused | ByAutodiff
    sigmas: tuple[float, ...]


def of(module: Any, reads_level: bool = False) -> Any:
    """A head as the calls that run it; what is that already is returned as it is.

    Fused are :class:`fastcsm.nn.ScoreHead`, and an nn.Sequential of Linear and activation modules (Softplus,
    Tanh, SiLU, GELU(approximate="tanh"), ELU, ReLU, Sigmoid, with their default parameters; one kind in a
    head) that ends in a Linear with one output. Identity, and Dropout that does nothing, are skipped. Where
    calling the modules may do more than their weights say (see ``readable.py``), they are called.

    Args:
        module: a :class:`ReadableHead`, or any callable that maps (..., C + 1), x last, to (..., 1) or
            (...), each row by itself.
        reads_level: whether the last context feature is log sigma and the output sigma times the score.

    Returns:
        :class:`Fused` or :class:`ByAutodiff`.
    """
    if isinstance(module, (Fused, ByAutodiff, AtLevel)):
        return module
    found = layers_of(module)
    if isinstance(found, str):
        return ByAutodiff(module, found, reads_level)
    return Fused(found, reads_level)


def score_and_derivative(head: Any, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Score s(c, x) = head([c, x]) and its derivative with respect to x, in one pass.

    Args:
        head: a :class:`fastcsm.nn.ScoreHead`; an nn.Sequential that :func:`of` runs fused; or any callable
            that maps (..., C + 1), x last, to (..., 1) or (...), each row by itself. The latter runs by
            double backward, and one warning says why.
        context: (..., C).
        x: (...), of the dtype and device of the context and the head.

    Returns:
        s and s', each of the shape of x; differentiable.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    return of(head).score_and_derivative(context, x)


class _Head:
    """What both kinds have in common."""

    #: The score is this factor times the output.
    scale: float | Tensor = 1.0
    reads_level: bool
    score_and_derivative: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def at(self, sigma: float | Tensor) -> Any:
        """The score of one noise level, a number or one a row; of a head that reads no level, the head."""
        return AtLevel(self, sigma) if self.reads_level else self

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


class Fused(_Head):
    """A head that runs by fastcsm's ops.

    Attributes:
        layers: its raw tensors.
    """

    def __init__(self, layers: functional.Head, reads_level: bool = False):
        self.reads_level, self.layers = reads_level, layers

    def parameters(self) -> Iterator[Tensor]:
        """The head's weights and biases."""
        return iter([*self.layers.weights, *(bias for bias in self.layers.biases if bias is not None)])

    def _call(self, function: Callable[..., Any], *rows: Any, **options: Any) -> Any:
        weights, biases, frequencies, activation = self.layers
        return function(*rows, weights, biases, activation=activation, frequencies=frequencies, **options)

    def _call_wide(self, function: Callable[..., Any], context: Tensor, x: Tensor, **options: Any) -> Any:
        """A call in the head's dtype, at least float32: 16 bits cannot tell the points of a density apart."""
        weights, biases, frequencies, activation = self.layers
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        wide = functional.Head(
            [weight.to(dtype) for weight in weights],
            [None if bias is None else bias.to(dtype) for bias in biases],
            None if frequencies is None else frequencies.to(dtype),
            activation,
        )
        return Fused(wide)._call(function, context.to(dtype), x.to(dtype), **options)

    def score(self, context: Tensor, x: Tensor) -> Tensor:
        """s (...) of x (...) given contexts (..., C)."""
        return self._call(functional.score, context, x)

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and s', each (...)."""
        return self._call(functional.score_head, context, x)

    def csm_loss(self, context: Tensor | LinearContext, x: Tensor, coefficients: Coefficients) -> Tensor:
        """Sum over rows of alpha r^2 / 2 + beta r' + gamma r."""
        if not isinstance(context, LinearContext):
            return csm_loss_of_head(context, x, self.layers, *coefficients)
        options: dict[str, Any] = dict(zip(("alpha", "beta", "gamma"), coefficients, strict=True))
        return self._call(functional.linear_csm_loss, *context.layer, x, extra=context.extra, **options)

    def density(
        self, context: Tensor, x: Tensor, interval: Interval, inverse: bool, sigma: float | None = None
    ) -> Density:
        """:func:`fastcsm.functional.conditional_density`, of noise level sigma."""
        options: dict[str, Any] = interval._asdict() | {"inverse": inverse}
        if sigma is not None:
            options |= {"score_scale": 1 / sigma, "stage_feature": math.log(sigma)}
        return self._call_wide(functional.conditional_density, context, x, **options)

    @torch.no_grad()
    def flow(
        self, context: Tensor, x: Tensor, levels: tuple[float, float], tolerance: float | None, change: bool
    ) -> Flow:
        """:func:`fastcsm.functional.probability_flow` from the first of two noise levels to the second."""
        options = {"sigma_from": levels[0], "sigma_to": levels[1], "tolerance": tolerance, "change": change}
        return self._call_wide(functional.probability_flow, context, x, **options)

    def langevin(self, context: Tensor, x: Tensor, stages: Stages, **numbers: Any) -> Tensor:
        """:func:`fastcsm.functional.langevin`; ``numbers`` are seed, samples, dimensions and first_step."""
        sizes, steps, scales, features = stages
        own = {"step_sizes": sizes, "steps": steps, "score_scales": scales, "stage_features": features}
        return self._call(functional.langevin, context, x, **own, **numbers)


class ByAutodiff(_Head):
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
        self, context: Tensor, x: Tensor, interval: Interval, inverse: bool, sigma: float | None = None
    ) -> Density:
        """As :func:`fastcsm.functional.conditional_density`."""
        rows = context.reshape(-1, context.shape[-1])

        def score(index: Tensor, t: Tensor) -> Tensor:
            own = rows[index].unsqueeze(1).expand(-1, t.shape[1], -1)
            if sigma is None:
                return self.score(own, t.to(rows.dtype)).double()
            own = with_level(own, torch.full_like(t, sigma))
            return self.score(own, t.to(rows.dtype)).double() / sigma

        x, (low, high, tolerance, panels) = _wide(x, rows), interval
        tolerance = default_tolerance(tolerance, x)
        unit = torch.finfo(rows.dtype).eps
        found = quadrature.solve(score, low, high, x.reshape(-1).double(), inverse, tolerance, panels, unit)
        values = quadrature.rounded(found, x.dtype, inverse)
        shaped = [value.reshape(x.shape) for value in values[:-1]]
        return Density._make([*shaped, values[-1].reshape(*x.shape, 2)])

    @torch.no_grad()
    def flow(
        self, context: Tensor, x: Tensor, levels: tuple[float, float], tolerance: float | None, change: bool
    ) -> Flow:
        """As :func:`fastcsm.functional.probability_flow`."""
        rows = context.reshape(-1, context.shape[-1])

        def output(index: Tensor, t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            own, t = with_level(rows[index], sigma), t.to(rows.dtype)
            if not change:
                return self.score(own, t).double(), torch.zeros_like(sigma)
            s, ds = self.score_and_derivative(own, t)
            return s.double(), ds.double()

        x = _wide(x, rows)
        tolerance = default_tolerance(tolerance, x)
        found = probability_flow.solve(output, x.reshape(-1).double(), levels, tolerance, change)
        return Flow._make(value.to(x.dtype).reshape(x.shape) for value in found)

    def langevin(self, context: Tensor, x: Tensor, stages: Stages, **numbers: Any) -> Tensor:
        """As :func:`fastcsm.functional.langevin`."""
        seed, samples, dimensions = numbers["seed"], numbers["samples"], numbers["dimensions"]
        step = numbers["first_step"]
        for index, size in enumerate(stages.step_sizes):
            c, scale = context, 1.0
            if stages.features is not None and stages.score_scales is not None:
                c, scale = _with_feature(context, stages.features[index]), stages.score_scales[index]
            for _ in range(stages.steps):
                z = random.normal(seed, samples, dimensions, step, x.dtype)
                x = x + size / 2 * (scale * self.score(c, x)) + math.sqrt(size) * z
                step += 1
        return x


class AtLevel:
    """The score of one noise level of a head that reads log sigma; made by ``head.at(sigma)``.

    Attributes:
        scale: the score is this factor times the output.
    """

    def __init__(self, head: Any, sigma: float | Tensor):
        self._head, self._sigma = head, sigma
        self.scale = sigma.reciprocal() if isinstance(sigma, Tensor) else 1 / sigma

    def score(self, context: Tensor, x: Tensor) -> Tensor:
        """s (...) of x (...) given contexts (..., C) without log sigma."""
        return self._head.score(with_level(context, self._sigma), x) / self._sigma

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and s', each (...)."""
        s, ds = self._head.score_and_derivative(with_level(context, self._sigma), x)
        return s / self._sigma, ds / self._sigma

    def csm_loss(self, context: Tensor | LinearContext, x: Tensor, coefficients: Coefficients) -> Tensor:
        """Sum over rows of alpha r^2 / 2 + beta r' + gamma r, r the output, sigma times the score."""
        return self._head.csm_loss(with_level(context, self._sigma), x, coefficients)

    def loss_of_rows(self, context: Tensor | LinearContext, x: Tensor, coefficients: Coefficients) -> Tensor:
        """alpha r^2 / 2 + beta r' + gamma r of every row."""
        return self._head.loss_of_rows(with_level(context, self._sigma), x, coefficients)

    def density(self, context: Tensor, x: Tensor, interval: Interval, inverse: bool) -> Density:
        """As :meth:`Fused.density`."""
        return self._head.density(context, x, interval, inverse, self._sigma)


def with_level(context: Any, sigma: float | Tensor) -> Any:
    """Contexts (..., C) with log sigma as the last feature; sigma a number or (...)."""
    if isinstance(context, LinearContext):
        return context._replace(extra=sigma.log().unsqueeze(-1))
    if not isinstance(sigma, Tensor):
        return _with_feature(context, math.log(sigma))
    return torch.cat([context, sigma.log().to(context.dtype).unsqueeze(-1)], -1)


def _wide(x: Tensor, like: Tensor) -> Tensor:
    """x in the dtype of ``like``, at least float32."""
    return x.to(torch.promote_types(like.dtype, torch.float32))


def _with_feature(context: Tensor, value: float) -> Tensor:
    return torch.cat([context, context.new_full((*context.shape[:-1], 1), value)], -1)


def _warn_once(message: str) -> None:
    if message in _warned:
        return
    _warned.add(message)
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(__package__.partition(".")[0] + "."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)  # where the package was called
