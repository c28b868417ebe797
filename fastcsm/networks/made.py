"""Masked autoregressive context network (MADE) with units sorted by degree."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import activations
from ..functional import Network
from ..functional.arguments import at_least, widths
from ..reference.incremental import Incremental, on_host
from .constants import Constants
from .context import LinearContext
from .masked_linear import MaskedLinear
from .readable import Readable, why_called, why_layer_called


class MADE(Constants, Readable):
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
        features, hidden_features, context_features, activation, residual: as given.
        order: list; order[k] is the variable of degree k + 1: the degrees, part of the state_dict, say it.
        places: ``order`` as int64 (D,), on the device of the degrees.
        layers: nn.ModuleList of the hidden :class:`MaskedLinear`.
        output: the last MaskedLinear, whose rows d C ... (d + 1) C are the context of variable d.

    Raises:
        TypeError: if hidden_features is no sequence of whole numbers.
        ValueError: if a size is out of range, the order is no permutation, or residual widths differ.

    Warns:
        UserWarning: a hidden layer has fewer than D - 1 units: some contexts miss variables before theirs.

    M. Germain, K. Gregor, I. Murray and H. Larochelle, "MADE: masked autoencoder for distribution
    estimation", ICML 2015.
    """

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
        hidden_features = widths("hidden_features", hidden_features)
        at_least(1, features=features, context_features=context_features)
        order = list(range(features)) if order is None else [int(variable) for variable in order]
        if sorted(order) != list(range(features)):
            raise ValueError(f"order must be a permutation of range({features}), got {order}")
        if residual and len(set(hidden_features)) > 1:
            raise ValueError(f"hidden_features must all be equal when residual, got {hidden_features}")
        self.features = features
        self.hidden_features = hidden_features
        self.context_features = context_features
        self.activation = activation
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        self._drawn: tuple[Any, ...] = (None, None)

        inputs = torch.empty(features, dtype=torch.int64)
        inputs[order] = torch.arange(1, features + 1)
        hidden = [_hidden_degrees(width, features) for width in hidden_features]
        if residual:
            hidden = [hidden[0], *(degrees for degrees in hidden[1:] for _ in range(2))]
        f = _activations(len(hidden), activation, residual)
        self.layers = nn.ModuleList(
            MaskedLinear(*degrees, activation=name)
            for degrees, name in zip(pairwise([inputs, *hidden]), f, strict=True)
        )
        if min(hidden_features) < features - 1:
            warnings.warn(
                f"hidden_features has a layer of width {min(hidden_features)} for {features} variables:"
                f" contexts do not read all variables before theirs, which takes {features - 1}",
                stacklevel=2,
            )
        outputs = (inputs - 1).repeat_interleave(context_features)
        self.output = MaskedLinear(hidden[-1], outputs)

    @property
    def order(self) -> list[int]:
        """order[k], the variable drawn k-th."""
        return list(self._order()[0])

    @property
    def places(self) -> Tensor:
        """``order`` as int64 (D,)."""
        return self._order()[1]

    def _order(self) -> tuple[list[int], Tensor]:
        """As the first layer's degrees say, which are read again where they have changed."""
        degrees = cast(MaskedLinear, self.layers[0]).in_degrees
        version = None if degrees.is_inference() else degrees._version
        if version is None or self._drawn[0] is not degrees or self._drawn[1] != version:
            places = degrees.argsort()
            self._drawn = degrees, version, (places.tolist(), places)
        return self._drawn[2]

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

    called = forward, hidden

    def why_called(self) -> str | None:
        """Why calling may do otherwise than :meth:`network` and :meth:`units`, which read the layers, do."""
        drops = self.dropout.training and self.dropout.p > 0
        return self._why_not_read() or ("it is in training mode" if drops else None)

    def _why_not_read(self) -> str | None:
        layers = self._layers()
        wanted = [*_activations(len(layers) - 1, self.activation, self.residual), None]
        different = [
            super().why_called(),
            why_layer_called(self.dropout, nn.Dropout),
            *(why_layer_called(layer, MaskedLinear) for layer in layers),
        ]
        if any(different):
            return next(filter(None, different))
        if [layer.activation for layer in layers] != wanted:
            return "a layer has another activation"
        if not all(
            torch.equal(on_host(before.out_degrees), on_host(after.in_degrees))
            for before, after in pairwise(layers)
        ):
            return "the degrees of a layer are not those of the layer before"
        return None

    def _layers(self) -> list[MaskedLinear]:
        return [cast(MaskedLinear, layer) for layer in (*self.layers, self.output)]

    def last_layer(self, x: Tensor) -> LinearContext | None:
        """The contexts of x (..., D) with the output layer left to do; None if calling it would do more."""
        output = self.output
        if why_called(self, self.called[:1]) or why_layer_called(output, MaskedLinear):
            return None
        hidden = self.hidden(x)
        return LinearContext((hidden, output.weight, output.bias, *output.degrees(hidden.device)))

    def network(self) -> Network:
        """The layers as :func:`fastcsm.functional.langevin_draw` takes them.

        Raises:
            ValueError: calling the MADE, a subclass of it or one of its layers may give something else.
        """
        why = self._why_not_read()
        if why:
            raise ValueError(f"the MADE must be called, as its weights do not say all it does: {why}")
        layers = self._layers()
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        device = weights[0].device
        degrees = [layer.degrees(device)[1] for layer in layers[:-1]]
        places = self.places.to(device)
        return Network(weights, biases, degrees, places, self.activation, self.residual)

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
        order = network.order.to(weights[0].device)
        return Incremental(batch, network._replace(weights=weights, biases=biases, order=order))

    def settings(self) -> dict[str, Any]:
        return {"activation": self.activation, "residual": self.residual}

    def extra_repr(self) -> str:
        return (
            f"{self.features}, hidden_features={self.hidden_features},"
            f" context_features={self.context_features}, dropout={self.dropout.p}"
        )


def _activations(layers: int, name: str, residual: bool) -> list[str | None]:
    """What each hidden layer ends in; of residual blocks the second layer adds to what the block reads."""
    return [name if not residual or k % 2 else None for k in range(layers)]


def _hidden_degrees(width: int, features: int) -> Tensor:
    """Sorted degrees of a hidden layer, spread evenly over [1, max(features - 1, 1)]."""
    return 1 + torch.arange(width) * max(features - 1, 1) // width
