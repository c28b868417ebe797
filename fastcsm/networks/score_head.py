"""The score head: one small MLP shared by all dimensions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .. import activations, functional
from ..functional.arguments import at_least
from .heads import Fused, Readable


class ScoreHead(Readable):
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
        at_least(1, hidden_features=min(hidden_features, default=0))
        self.context_features = context_features
        self.hidden_features = tuple(hidden_features)
        self.activation = activation
        self.frequency_scale = frequency_scale
        self.register_buffer("frequencies", frequency_scale * torch.randn(frequencies, generator=generator))
        widths = [context_features + 1 + 2 * frequencies, *hidden_features, 1]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    @property
    def weights(self) -> list[Tensor]:
        """The K + 1 weight matrices, as :mod:`fastcsm.functional` takes them."""
        return [cast(nn.Linear, layer).weight for layer in self.layers]

    @property
    def biases(self) -> list[Tensor]:
        """The K + 1 bias vectors."""
        return [cast(nn.Linear, layer).bias for layer in self.layers]

    def raw(self) -> functional.Head:
        return functional.Head(self.weights, self.biases, self.frequencies, self.activation)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Score of x (...) given context (..., C); shape (...); differentiable once."""
        return Fused(self.raw()).score(context, x)

    def score_and_derivative(self, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score and its derivative with respect to x, each (...), in one pass; differentiable once."""
        return Fused(self.raw()).score_and_derivative(context, x)

    def extra_repr(self) -> str:
        return (
            f"{self.context_features}, hidden_features={self.hidden_features},"
            f" activation={self.activation!r}, frequencies={self.frequencies.shape[0]}"
        )
