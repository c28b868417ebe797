"""Models of one-dimensional conditionals: densities, distribution functions and draws from their parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import samplers
from ..densities import Accuracy, Conditionals, LogDensity
from ..functional.arguments import one_of
from ..networks.context import in_order
from ..networks.heads import Part
from .model import Model, check_data, in_dtype_of


class Autoregressive(Model):
    """A model that is a list of parts: score heads on the contexts of autoregressive networks.

    Densities are those of the last part.

    Args:
        data_range: the interval that holds the data's values; densities are integrated from a few sigmas
            outside it on. A wrong one costs time, not accuracy.
    """

    _range: tuple[float, float]

    def __init__(self, data_range: tuple[float, float]):
        super().__init__()
        self.data_range = data_range

    @property
    def data_range(self) -> tuple[float, float]:
        """The interval that holds the data's values."""
        return self._range

    @data_range.setter
    def data_range(self, value: tuple[float, float]) -> None:
        low, high = map(float, value)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"data_range must be two finite numbers in order, got {value}")
        self._range = low, high

    def parts_to_draw(self, method: str) -> list[Part]:
        """The parts from which this method draws; raises where one is missing."""
        return self.parts()

    def sample(self, n: int, method: str | None = None, seed: int = 0, **options: Any) -> Tensor:
        """Draw samples, one dimension after the other; the mode (train or eval) is restored afterwards.

        Args:
            n: number of samples.
            method: "flow", exact draws at the largest noise level carried down the probability flow (the
                default of a conditional model, which it needs); "inverse_cdf", exact draws of the density at
                the smallest level; or "langevin", annealed Langevin dynamics as in the paper (the default
                otherwise, and where ``steps`` or ``step_size`` is given).
            seed: a seed means the same samples whatever the batch size and the backend, to rounding.
            options: ``batch_size``, ``first_sample``, ``given`` and ``known``, ``denoise`` and ``progress``
                as for :class:`fastcsm.samplers.Drawing`; of Langevin dynamics ``steps``, a noise level, 20 by
                default, and ``step_size`` e_0 at the last level; of the others those of
                :func:`fastcsm.samplers.autoregressive.flow`.

        Returns:
            (n, D), on the device and in the dtype of the model.

        Raises:
            ValueError: the method is not known, needs a conditional model or takes no steps; a size is out of
                range; stages are missing.
        """
        options = {name: value for name, value in options.items() if value is not None}
        stepwise = next((name for name in ("steps", "step_size") if name in options), None)
        if method is None:
            method = self.sample_methods[0] if stepwise is None else "langevin"
        one_of("method", method, samplers.BY_NAME)
        if stepwise and method != "langevin":
            raise ValueError(f"{stepwise} is {options[stepwise]}, expected none with method {method!r}")
        own = {name: options.pop(name) for name in samplers.Drawing._fields if name in options}
        with self.evaluating():
            drawing = samplers.Drawing(n, seed=seed, **own)
            return samplers.BY_NAME[method](self.parts_to_draw(method), drawing, self.data_range, **options)

    def conditionals(
        self,
        method: str | None = None,
        *,
        sigma: float | None = None,
        base: float | None = None,
        **accuracy: Any,
    ) -> Conditionals:
        """The one-dimensional conditionals, for rows of contexts; the current parameters of a staged model.

        Args:
            method, sigma, base: as for :meth:`log_density`.
            accuracy: fields of :class:`fastcsm.densities.Accuracy`.
        """
        _, head, sigmas = self.parts()[-1]
        exact = Accuracy(**accuracy)
        return Conditionals(head, sigmas, self.data_range, method, sigma=sigma, base=base, accuracy=exact)

    def log_density(  # type: ignore[override]
        self,
        x: Tensor,
        method: str | None = None,
        *,
        sigma: float | None = None,
        base: float | None = None,
        tolerance: float | None = None,
    ) -> LogDensity:
        """log q(x_d given the variables before it) of every dimension, with an estimate of its error.

        With a noise schedule q is the density of the data with noise of level sigma; the context network
        reads x itself, which is right for sigma = sigma_L.

        Args:
            x: (B, D), of any floating dtype: what the context network reads is rounded to the network's.
            method: "quadrature", the integral of the scores of level sigma; or "flow", that of the first
                level carried along the probability flow (the default of a conditional model, which it needs).
            sigma: noise level, conditional form only; the last by default.
            base: noise level at which the flow begins, the first by default; see
                :class:`fastcsm.densities.Conditionals`.
            tolerance: largest estimated error of a dimension's log-density by quadrature, and of a step of
                the flow, in nats; by default 1e-7 in float64 and 1e-4 otherwise.

        Returns:
            :class:`fastcsm.densities.LogDensity`: ``log_density`` (B, D) in nats, NaN where a density does
            not exist; ``error`` (B, D), inf there; ``ends`` (B, D, 2), the probabilities beyond the interval
            of integration. All are in the model's dtype, at least float32. The log-density is differentiable
            by quadrature.

        Raises:
            ValueError: the method is not known, or it or sigma needs a conditional model.
        """
        check_data(x)
        rows = self.conditionals(method, sigma=sigma, base=base, tolerance=tolerance)
        return rows.log_density(self._contexts(x), x)

    @torch.no_grad()
    def cdf(self, x: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """P(X_d <= x_d given the variables before it), (B, D); arguments as for :meth:`log_density`.

        For x from the model these are independent uniform variables (Rosenblatt's transform).
        """
        check_data(x)
        return self.conditionals(method, **options).cdf(self._contexts(x), x)

    @torch.no_grad()
    def quantile(self, u: Tensor, method: str | None = None, **options: Any) -> Tensor:
        """x (B, D) with cdf(x) = u, found variable by variable in the model's order.

        Args:
            u: (B, D), probabilities in [0, 1].
            method, options: as for :meth:`log_density`.

        Returns:
            (B, D), in the model's dtype, at least float32.
        """
        check_data(u, "u")
        rows, net = self.conditionals(method, **options), self.parts()[-1].context_net
        x = in_dtype_of(net, torch.zeros_like(u))
        found = {}
        for d, context in in_order(net, x):
            x[:, d] = found[d] = rows.quantile(context, u[:, d])
        return torch.stack([found[d] for d in range(len(found))], 1)

    def _contexts(self, x: Tensor) -> Tensor:
        """Contexts (B, D, C) of the last part."""
        net = self.parts()[-1].context_net
        return net(in_dtype_of(net, x))
