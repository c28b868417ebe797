"""Incremental evaluation of a MADE: each hidden unit once, as soon as the variables it reads are known."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import activations
from .network import Network

_copies: Any = WeakIdKeyDictionary()


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the processor: itself, or a copy that is kept while it lives and is not written to."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.is_inference():  # it does not count what is written to it
        return tensor.cpu()
    version, copy = _copies.get(tensor, (None, None))
    if version != tensor._version:
        copy = tensor.cpu()
        _copies[tensor] = tensor._version, copy
    return copy


class Incremental:
    """Contexts of a batch of samples whose variables become known one by one, in the order of drawing.

    Feeding the k-th value finishes the hidden units of degree k: a few rows of each layer, on the prefix of
    the layer below that is already known. All contexts together cost one masked forward pass. The results are
    those of the full pass in evaluation mode (no dropout), to rounding; they carry no gradient. Weights are
    read when they are needed, not copied, unless the order is not raster.

    Args:
        batch: number B of samples.
        network: with all biases and an order, in the dtype and on the device of the values and contexts.

    Attributes:
        known: number of values fed so far.
        order: the variables in the order of drawing.

    Raises:
        ValueError: if hidden degrees are not sorted.
    """

    def __init__(self, batch: int, network: Network):
        weights, biases, degrees, order, activation, residual = network
        self._f = activations.get(activation).f
        self.order: list[int] = on_host(order).tolist() if isinstance(order, Tensor) else list(order)
        features = len(self.order)
        self._features = len(weights[-1]) // features
        self._weights, self._biases = list(weights), list(biases)
        if self.order != sorted(self.order):
            self._weights[0] = self._weights[0][:, order]
        self._ends = [_ends(degree, features) for degree in degrees]
        self._values = weights[0].new_zeros(batch, features)
        #: What the layer above reads of each layer; of a residual network's even layers, f of the sum so far.
        self._units = [weights[0].new_zeros(batch, len(degree)) for degree in degrees]
        self._sum = torch.zeros_like(self._units[0]) if residual else None
        self.known = 0

    @torch.no_grad()
    def feed(self, value: Tensor) -> None:
        """Make the next variable in the order of drawing known.

        Args:
            value: (B,), the values of variable ``order[known]``.

        Raises:
            ValueError: if all variables are known or the shape is wrong.
        """
        batch, features = self._values.shape
        if self.known == features:
            raise ValueError(f"feed was called with all {features} variables known")
        if value.shape != (batch,):
            raise ValueError(f"value must have shape ({batch},), got {tuple(value.shape)}")
        self._values[:, self.known] = value
        self.known += 1
        if self.known < features:
            for layer in range(len(self._units)):
                self._finish(layer, self.known)

    def _finish(self, layer: int, degree: int) -> None:
        """The units of one degree in one layer."""
        begin, end = self._ends[layer][degree - 1 : degree + 1]
        if begin == end:
            return
        units = slice(begin, end)
        a = self._linear(layer, units, degree)
        if self._sum is None or layer % 2 == 1:
            self._units[layer][:, units] = self._f(a)
        else:
            self._sum[:, units] += a
            self._units[layer][:, units] = self._f(self._sum[:, units])

    def _linear(self, layer: int, rows: slice, degree: int) -> Tensor:
        """Rows of a layer's product, on the inputs of a degree up to the given one."""
        below = self._values if layer == 0 else self._units[layer - 1]
        end = degree if layer == 0 else self._ends[layer - 1][degree]
        weight, bias = self._weights[layer][rows, :end], self._biases[layer][rows]
        return torch.addmm(bias, below[:, :end], weight.t())

    @torch.no_grad()
    def context(self, k: int) -> Tensor:
        """Context (B, C) of variable ``order[k]``, for which the k variables before it must be known.

        Raises:
            ValueError: if they are not, or k is out of range.
        """
        if not 0 <= k < len(self.order):
            raise ValueError(f"k must be in [0, {len(self.order)}), got {k}")
        if k > self.known:
            raise ValueError(f"k must be at most {self.known}, the number of known variables, got {k}")
        first = self.order[k] * self._features
        return self._linear(len(self._units), slice(first, first + self._features), k)


def contexts_in_order(
    x: Tensor, network: Network, first: int, last: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """As :func:`fastcsm.reference.network.contexts_in_order`, of one network, each unit evaluated once."""
    units = Incremental(len(x), network)
    for k, d in enumerate(units.order[:last]):
        if k >= first:
            yield d, [units.context(k)]
        units.feed(x[:, d])


def _ends(degrees: Tensor, features: int) -> list[int]:
    """Number of units of a degree up to m, for m = 0, ..., features - 1."""
    degrees = on_host(degrees)
    if (degrees.diff() < 0).any():
        raise ValueError("degrees must be those of hidden units sorted by degree")
    return torch.searchsorted(degrees, torch.arange(features, device=degrees.device), right=True).tolist()
