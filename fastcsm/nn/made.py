"""Masked autoregressive context network (MADE) with units sorted by degree."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .. import activations, functional
from ..incremental import Incremental


class MaskedLinear(nn.Module):
    """f((W * M) x + b), with an edge from input i to output o iff in_degrees[i] <= out_degrees[o].

    Args:
        in_degrees, out_degrees: degrees of the inputs (I,) and outputs (O,).
        activation: name of f as for :class:`ScoreHead`, or None for the identity.
        bias: whether there is a bias.

    Attributes:
        weight: (O, I), initialised as nn.Linear's, zero where there is no edge, and left there by training.
        bias: (O,) or None.
        in_degrees, out_degrees: int64 buffers.
    """

    in_degrees: Tensor
    out_degrees: Tensor

    def __init__(
        self,
        in_degrees: Sequence[int] | Tensor,
        out_degrees: Sequence[int] | Tensor,
        *,
        activation: str | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if activation is not None:
            activations.get(activation)
        self.register_buffer("in_degrees", torch.as_tensor(in_degrees, dtype=torch.int64).clone())
        self.register_buffer("out_degrees", torch.as_tensor(out_degrees, dtype=torch.int64).clone())
        self.activation = activation
        template = nn.Linear(self.in_degrees.numel(), self.out_degrees.numel(), bias=bias)
        self.weight, self.bias = template.weight, template.bias
        with torch.no_grad():
            self.weight.masked_fill_(self.in_degrees > self.out_degrees[:, None], 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return functional.masked_linear(
            x, self.weight, self.bias, self.in_degrees, self.out_degrees, activation=self.activation
        )

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, activation={self.activation!r}, bias={self.bias is not None}"


class MADE(nn.Module):
    """Maps x (..., D) to contexts (..., D, C), the context of a variable depending only on those before it.

    Variables have degrees 1..D in the order they are drawn, hidden units are sorted by degree and spread
    evenly over [1, D - 1], and the C outputs of a variable of degree d carry degree d - 1. The first
    variable's context is a bias alone.

    Args:
        features: D.
        hidden_features: widths of the hidden layers.
        context_features: C.
        order: permutation of range(D), order[k] being the variable drawn k-th; None is raster order.
        activation: name as for :class:`ScoreHead`.
        residual: all hidden widths equal; after the first layer x_0 = W_0 x, each further entry of
            hidden_features is a block x + W_2 f(W_1 f(x)), and the outputs read f of the last.
        dropout: probability of nn.Dropout on the hidden activations.

    Attributes:
        features, hidden_features, context_features, order, activation, residual: as given; order as a list.
        places: ``order`` as an int64 buffer (D,), not part of the state_dict.
        layers: nn.ModuleList of the hidden :class:`MaskedLinear`.
        output: the last MaskedLinear, whose rows d C ... (d + 1) C are the context of variable d.

    Raises:
        ValueError: if a size is out of range, the order is no permutation, or residual widths differ.

    M. Germain, K. Gregor, I. Murray and H. Larochelle, "MADE: masked autoencoder for distribution
    estimation", ICML 2015.
    """

    places: Tensor

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        context_features: int,
        *,
        order: Sequence[int] | None = None,
        activation: str = "relu",
        residual: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value in (
            ("features", features),
            ("context_features", context_features),
            ("hidden_features", min(hidden_features, default=0)),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        order = list(range(features)) if order is None else [int(variable) for variable in order]
        if sorted(order) != list(range(features)):
            raise ValueError(f"order must be a permutation of range({features}), got {order}")
        if residual and len(set(hidden_features)) > 1:
            raise ValueError(f"hidden_features must all be equal when residual, got {tuple(hidden_features)}")
        self.features = features
        self.hidden_features = tuple(hidden_features)
        self.context_features = context_features
        self.order = order
        self.activation = activation
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places", torch.tensor(order), persistent=False)

        inputs = torch.empty(features, dtype=torch.int64)
        inputs[order] = torch.arange(1, features + 1)
        hidden = [_hidden_degrees(width, features) for width in hidden_features]
        first = None if residual else activation
        self.layers = nn.ModuleList([MaskedLinear(inputs, hidden[0], activation=first)])
        for before, after in pairwise(hidden):
            self.layers.append(MaskedLinear(before, after, activation=activation))
            if residual:
                self.layers.append(MaskedLinear(after, after))
        outputs = (inputs - 1).repeat_interleave(context_features)
        self.output = MaskedLinear(hidden[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D, C)."""
        return self.output(self.hidden(x)).unflatten(-1, (self.features, self.context_features))

    def hidden(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H), what the layer ``output`` reads."""
        return self._residual_trunk(x) if self.residual else self._trunk(x)

    def incremental(
        self, batch: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Incremental:
        """Evaluation of a batch of samples whose variables become known one by one, in the order of drawing.

        Args:
            batch: number of samples.
            dtype, device: of the values and contexts; those of the parameters by default.
        """
        like = self.output.weight.detach().new_empty(0).to(device=device, dtype=dtype)
        layers = [cast(MaskedLinear, layer) for layer in (*self.layers, self.output)]
        weights = [layer.weight.detach().to(like) for layer in layers]
        biases = [
            weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to(like)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        degrees, places = [layer.out_degrees for layer in layers[:-1]], self.places.to(like.device)
        return Incremental(batch, weights, biases, degrees, places, self.activation, self.residual)

    def _trunk(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x))
        return x

    def _residual_trunk(self, x: Tensor) -> Tensor:
        f = activations.get(self.activation).f
        x = self.layers[0](x)
        for first, second in zip(self.layers[1::2], self.layers[2::2], strict=True):
            x = x + second(self.dropout(first(f(x))))
        return f(x)

    def extra_repr(self) -> str:
        return (
            f"{self.features}, hidden_features={self.hidden_features},"
            f" context_features={self.context_features}, dropout={self.dropout.p}"
        )


def _hidden_degrees(width: int, features: int) -> Tensor:
    """Sorted degrees of a hidden layer, spread evenly over [1, max(features - 1, 1)]."""
    return 1 + torch.arange(width) * max(features - 1, 1) // width
