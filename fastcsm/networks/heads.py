"""Any score head as the calls that run it: fused, or called and differentiated twice, with the reason why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..functional import Density, Flow, Interval, Stages
from ..functional.csm_loss import of_head as csm_loss_of_head
from .any_head import AnyHead, AtLevel, Coefficients
from .autodiff import ByAutodiff
from .context import LinearContext
from .readable import layers_of


class Part(NamedTuple):
    """One set of parameters and the noise levels it serves, largest first; none for a model without noise."""

    context_net: nn.Module
    head: Any
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
        :class:`Fused` or :class:`fastcsm.networks.autodiff.ByAutodiff`.
    """
    if isinstance(module, (AnyHead, AtLevel)):
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


class Fused(AnyHead):
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
        self,
        context: Tensor,
        x: Tensor,
        interval: Interval,
        inverse: bool,
        sigma: float | None = None,
        squash: float | None = None,
    ) -> Density:
        """:func:`fastcsm.functional.conditional_density`, of noise level sigma."""
        options: dict[str, Any] = interval._asdict() | {"inverse": inverse, "squash": squash}
        if sigma is not None:
            options |= {"score_scale": 1 / sigma, "stage_feature": math.log(sigma)}
        return self._call_wide(functional.conditional_density, context, x, **options)

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
        """:func:`fastcsm.functional.probability_flow` from the first of two noise levels to the second."""
        options: dict[str, Any] = {"sigma_from": levels[0], "sigma_to": levels[1], "tolerance": tolerance}
        options |= {"change": change, "squash": squash}
        return self._call_wide(functional.probability_flow, context, x, **options)

    def langevin(self, context: Tensor, x: Tensor, stages: Stages, **numbers: Any) -> Tensor:
        """:func:`fastcsm.functional.langevin`; ``numbers`` are those that make its noise, and squash."""
        sizes, steps, scales, features = stages
        own = {"step_sizes": sizes, "steps": steps, "score_scales": scales, "stage_features": features}
        return self._call(functional.langevin, context, x, **own, **numbers)
