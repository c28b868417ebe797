"""The score head: one small MLP shared by all dimensions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .. import activations, functional
from ..functional.arguments import at_least, widths
from . import heads
from .constants import Constants
from .readable import ReadableHead, linear, why_layer_called


class ScoreHead(Constants, ReadableHead):
    """MLP s(c, x) that reads [c, x, sin(w x), cos(w x)] and returns the score of one dimension.

    Args:
        context_features: C, size of the context.
        hidden_features: widths of the hidden layers, at least one.
        activation: "softplus", "tanh", "silu", "gelu" (tanh form), "elu", "relu" or "sigmoid".
        frequencies: E, number of fixed frequencies w of x, drawn once from N(0, frequency_scale^2); 0 is the
            plain head of the paper.
        frequency_scale: standard deviation of the frequencies, in radians per unit of x.
        generator: random generator of the frequencies; torch's global one by default.

    Attributes:
        layers: nn.ModuleList of the K + 1 nn.Linear.
        frequencies: buffer (E,).

    Raises:
        TypeError: if hidden_features is no sequence of whole numbers.
        ValueError: if a size is out of range or the activation is not known.
    """

    frequencies: Tensor

    def __init__(
        self,
        context_features: int,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "silu",
        frequencies: int = 16,
        *,
        frequency_scale: float = 3.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        activations.get(activation)
        at_least(0, context_features=context_features, frequencies=frequencies)
        hidden_features = widths("hidden_features", hidden_features)
        self.context_features = context_features
        self.hidden_features = hidden_features
        self.activation = activation
        self.frequency_scale = frequency_scale
        self.register_buffer("frequencies", frequency_scale * torch.randn(frequencies, generator=generator))
        sizes = [context_features + 1 + 2 * frequencies, *hidden_features, 1]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    @property
    def weights(self) -> list[Tensor]:
        """The K + 1 weight matrices, as :mod:`fastcsm.functional` takes them."""
        return [cast(nn.Linear, layer).weight for layer in self.layers]

    @property
    def biases(self) -> list[Tensor]:
        """The K + 1 bias vectors."""
        return [cast(nn.Linear, layer).bias for layer in self.layers]

    def raw(self) -> functional.Head:
        weights, biases = zip(*map(linear, self.layers._modules.values()), strict=True)
        return functional.Head(weights, biases, self.frequencies, self.activation)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Score of x (...) given context (..., C); shape (...); differentiable once where it runs fused."""
        if self.why_called() is None:
            return heads.Fused(self.raw()).score(context, x)
        phase = x.unsqueeze(-1) * self.frequencies
        h = torch.cat([context, x.unsqueeze(-1), phase.sin(), phase.cos()], -1)
        *hidden, last = self.layers
        f = activations.get(self.activation).f
        for layer in hidden:
            h = f(layer(h))
        return last(h).squeeze(-1)

    called = (forward,)

    def why_called(self) -> str | None:
        why = super().why_called()
        for layer in self.layers._modules.values():
            why = why or why_layer_called(layer, nn.Linear)
        return why or ("its frequencies require a gradient" if self.frequencies.requires_grad else None)

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score and its derivative with respect to x, each (...), in one pass; differentiable once."""
        return heads.of(self).score_and_derivative(context, x)

    def settings(self) -> dict[str, str]:
        return {"activation": self.activation}

    def extra_repr(self) -> str:
        return (
            f"{self.context_features}, hidden_features={self.hidden_features},"
            f" activation={self.activation!r}, frequencies={self.frequencies.shape[0]}"
        )
