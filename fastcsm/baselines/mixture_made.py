"""The usual autoregressive density: a MADE whose outputs are a mixture of logistics per variable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import random
from ..nn.made import MADE


class MixtureMADE(nn.Module):
    """q(x_d given x_<d) = sum_k softmax(a)_k Logistic(x_d; m_k, exp(l_k)), (a, m, l) from a MADE of x_<d.

    A density of continuous values: dequantised images, not a discretised mixture. It trains by maximum
    likelihood: minimise ``-log_prob(x).mean()``.

    Args:
        features: D.
        hidden_features: widths of the MADE's hidden layers.
        components: K, logistics in each mixture.
        order, activation, residual, dropout: as for :class:`fastcsm.nn.MADE`.
        low, high: the means start evenly spread over (low, high), and each scale at a K-th of that interval;
            the range of the data.
        min_log_scale: floor of l. A likelihood is unbounded in a scale: 0.001 of the default range is well
            below the width of a grey level of 256 (0.008).

    Raises:
        ValueError: components is not positive, or low is not below high; sizes as for MADE.
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        components: int = 10,
        *,
        order: Sequence[int] | None = None,
        activation: str = "silu",
        residual: bool = False,
        dropout: float = 0.0,
        low: float = -1.0,
        high: float = 1.0,
        min_log_scale: float = -7.0,
    ):
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        self.features = features
        self.components = components
        self.min_log_scale = min_log_scale
        self.made = MADE(
            features,
            hidden_features,
            3 * components,
            order=order,
            activation=activation,
            residual=residual,
            dropout=dropout,
        )
        step = (high - low) / components
        with torch.no_grad():
            bias = self.made.output.bias.view(features, 3, components)
            bias[:, 0] = 0.0
            bias[:, 1] = low + step * (torch.arange(components) + 0.5)
            bias[:, 2] = torch.tensor(step).log()

    def log_density(self, x: Tensor) -> Tensor:
        """log q(x_d given x_<d), in nats: (B, D) -> (B, D); differentiable once."""
        return self._mixture(self.made(x), x)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x), in nats: (B, D) -> (B,)."""
        return self.log_density(x).sum(-1)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales (..., K) of outputs (..., 3 K)."""
        logits, means, log_scales = outputs.unflatten(-1, (3, self.components)).unbind(-2)
        return logits, means, log_scales.clamp(min=self.min_log_scale)

    def _mixture(self, outputs: Tensor, x: Tensor) -> Tensor:
        logits, means, log_scales = self._split(outputs)
        z = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
        terms = F.log_softmax(logits, -1) - z - log_scales - 2 * F.softplus(-z)
        return torch.logsumexp(terms, -1)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n samples (n, D), one dimension after the other in one masked forward pass in all.

        Args:
            n: number of samples.
            seed: of the uniform numbers, as for :func:`fastcsm.random.uniform`: one picks the component and
                one the value.
        """
        x = self.made.output.weight.new_empty(n, self.features)
        samples, units = torch.arange(n, device=x.device), self.made.incremental(n)
        for k, d in enumerate(self.made.order):
            logits, means, log_scales = self._split(units.context(k))
            dimension = torch.full_like(samples, d)
            u = [random.uniform(seed, samples, dimension, step, x.dtype) for step in range(2)]
            below = logits.softmax(-1).cumsum(-1) < u[0].unsqueeze(1)
            chosen = below.sum(1, keepdim=True).clamp(max=self.components - 1)
            mean, log_scale = means.gather(1, chosen).squeeze(1), log_scales.gather(1, chosen).squeeze(1)
            x[:, d] = mean + log_scale.exp() * torch.logit(u[1])
            units.feed(x[:, d])
        return x
