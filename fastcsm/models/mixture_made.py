"""The usual autoregressive density: a MADE whose outputs are a mixture of logistics per variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import random
from ..densities import LogDensity
from ..functional.arguments import at_least, one_of
from ..networks.constants import Constants
from ..networks.context import in_order
from ..networks.made import MADE
from .model import Model, Noise, check_data, in_dtype_of


class MixtureMADE(Model, Constants):
    """q(x_d given x_<d) = sum_k softmax(a)_k Logistic(x_d; m_k, exp(l_k)), (a, m, l) from a MADE of x_<d.

    A density of continuous values: dequantised images, not a discretised mixture. It trains by maximum
    likelihood: minimise ``-log_prob(x).mean()``.

    Args:
        features: D.
        hidden_features: widths of the MADE's hidden layers.
        components: K, logistics in each mixture.
        low, high: the means start evenly spread over (low, high), and each scale at a K-th of that interval;
            the range of the data.
        min_log_scale: floor of l. A likelihood is unbounded in a scale: 0.001 of the default range is well
            below the width of a grey level of 256 (0.008).
        made: order, activation ("silu" by default), residual and dropout, as for :class:`fastcsm.nn.MADE`.

    Raises:
        ValueError: components is not positive, or low is not below high; sizes as for MADE.
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        components: int = 10,
        *,
        low: float = -1.0,
        high: float = 1.0,
        min_log_scale: float = -7.0,
        **made: Any,
    ):
        super().__init__()
        at_least(1, components=components)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        self.features = features
        self.components = components
        self.min_log_scale = min_log_scale
        self.made = MADE(features, hidden_features, 3 * components, **({"activation": "silu"} | made))
        step = (high - low) / components
        with torch.no_grad():
            bias = self.made.output.bias.view(features, 3, components)
            bias[:, 0] = 0.0
            bias[:, 1] = low + step * (torch.arange(components) + 0.5)
            bias[:, 2] = torch.tensor(step).log()

    def settings(self) -> dict[str, float]:
        return {"min_log_scale": self.min_log_scale}

    density_methods = ("exact",)
    sample_methods = ("exact",)
    by_likelihood = True

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """-log q(x), the mean over samples x (B, D), in nats; it has no noise."""
        return -self.log_prob(x).mean()

    def log_density(self, x: Tensor, method: str | None = None) -> LogDensity:  # type: ignore[override]
        """log q(x_d given x_<d), in nats, of x (B, D): exact, differentiable once; ``method`` is "exact".

        In the model's dtype, at least float32; x may be of any floating dtype.
        """
        if method is not None:
            one_of("method", method, self.density_methods)
        check_data(x)
        logits, means, log_scales = self._split(self.made(in_dtype_of(self.made, x)))
        x = x.to(means.dtype)
        z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
        terms = F.log_softmax(logits, -1) - z - log_scales - 2 * F.softplus(-z)
        found = torch.logsumexp(terms, -1)
        return LogDensity(found, torch.zeros_like(found), found.new_zeros(*found.shape, 2))

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales (..., K) of outputs (..., 3 K), at least float32.

        16 bits round uniform numbers to 0 and 1.
        """
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        logits, means, log_scales = outputs.unflatten(-1, (3, self.components)).unbind(-2)
        return logits, means, log_scales.clamp(min=self.min_log_scale)

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        n: int,
        method: str | None = None,
        seed: int = 0,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw n samples (n, D), one dimension after the other in one masked forward pass in all.

        Args:
            n: number of samples.
            method: "exact".
            seed: of the uniform numbers, as for :func:`fastcsm.random.uniform`: one picks the component and
                one the value.
            progress: called with (variables done, variables in all).
        """
        if method is not None:
            one_of("method", method, self.sample_methods)
        with self.evaluating():
            return self._sample(n, seed, progress)

    def _sample(self, n: int, seed: int, progress: Callable[[int, int], None] | None) -> Tensor:
        like = next(self.made.parameters())
        x = torch.zeros(n, self.features, dtype=like.dtype, device=like.device)
        samples = torch.arange(n, device=x.device)
        for k, (d, outputs) in enumerate(in_order(self.made, x)):
            logits, means, log_scales = self._split(outputs)
            dimension = torch.full_like(samples, d)
            u = [random.uniform(seed, samples, dimension, step, means.dtype) for step in range(2)]
            below = logits.softmax(-1).cumsum(-1) < u[0].unsqueeze(1)
            chosen = below.sum(1, keepdim=True).clamp(max=self.components - 1)
            mean, log_scale = means.gather(1, chosen).squeeze(1), log_scales.gather(1, chosen).squeeze(1)
            x[:, d] = mean + log_scale.exp() * torch.logit(u[1])
            if progress:
                progress(k + 1, self.features)
        return x
