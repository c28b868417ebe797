"""Masked autoregressive context network (MADE) with units sorted by degree."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .. import activations
from ..functional import Network
from ..functional.arguments import at_least
from ..reference.incremental import Incremental
from .context import LinearContext, calls_forward
from .masked_linear import MaskedLinear


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
        activation: name as for :class:`fastcsm.nn.ScoreHead`.
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
        narrowest = min(hidden_features, default=0)
        at_least(1, features=features, context_features=context_features, hidden_features=narrowest)
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
        if not self.residual:
            for layer in self.layers:
                x = self.dropout(layer(x))
            return x
        f = activations.get(self.activation).f
        x = self.layers[0](x)
        for first, second in zip(self.layers[1::2], self.layers[2::2], strict=True):
            x = x + second(self.dropout(first(f(x))))
        return f(x)

    def last_layer(self, x: Tensor) -> LinearContext | None:
        """The contexts of x (..., D) with the output layer left to do; None if calling it would do more."""
        output = self.output
        if type(self) is not MADE or type(output) is not MaskedLinear:
            return None
        if not (calls_forward(self) and calls_forward(output)):
            return None
        layer = self.hidden(x), output.weight, output.bias, output.in_degrees, output.out_degrees
        return LinearContext(layer)

    def network(self) -> Network:
        """The layers as :func:`fastcsm.functional.langevin_draw` takes them."""
        layers = [cast(MaskedLinear, layer) for layer in (*self.layers, self.output)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        degrees = [layer.out_degrees for layer in layers[:-1]]
        return Network(weights, biases, degrees, self.places, self.activation, self.residual)

    def units(
        self, batch: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Incremental:
        """Evaluation of a batch of samples whose variables become known one by one, in the order of drawing.

        Args:
            batch: number of samples.
            dtype, device: of the values and contexts; those of the parameters by default.
        """
        network = self.network()
        weights = [weight.detach().to(device=device, dtype=dtype) for weight in network.weights]
        biases = [
            weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
            for weight, bias in zip(weights, network.biases, strict=True)
        ]
        order = self.places.to(weights[0].device)
        return Incremental(batch, network._replace(weights=weights, biases=biases, order=order))

    def extra_repr(self) -> str:
        return (
            f"{self.features}, hidden_features={self.hidden_features},"
            f" context_features={self.context_features}, dropout={self.dropout.p}"
        )


def _hidden_degrees(width: int, features: int) -> Tensor:
    """Sorted degrees of a hidden layer, spread evenly over [1, max(features - 1, 1)]."""
    return 1 + torch.arange(width) * max(features - 1, 1) // width
