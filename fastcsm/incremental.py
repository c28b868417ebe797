"""Incremental evaluation of a MADE: each hidden unit once, as soon as the variables it reads are known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import activations
from .host import on_host


class Incremental:
    """Contexts of a batch of samples whose variables become known one by one, in the order of drawing.

    Feeding the k-th value finishes the hidden units of degree k: a few rows of each layer, on the prefix of
    the layer below that is already known. All contexts together cost one masked forward pass. The results are
    those of the full pass in evaluation mode (no dropout), to rounding; they carry no gradient. Weights are
    read when they are needed, not copied, unless the order is not raster.

    Args:
        batch: number B of samples.
        weights, biases: hidden layers, then the output layer, whose D * C rows are the contexts by variable;
            in the dtype and on the device of the values and contexts.
        degrees: int64 (H_l,) for each hidden layer, sorted; variable order[k] has degree k + 1.
        order: permutation of range(D); as a tensor, on the device of the weights.
        activation, residual: as for :class:`fastcsm.nn.MADE`.

    Attributes:
        known: number of values fed so far.

    Raises:
        ValueError: if hidden degrees are not sorted.
    """

    def __init__(
        self,
        batch: int,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        degrees: Sequence[Tensor],
        order: Sequence[int] | Tensor,
        activation: str,
        residual: bool,
    ):
        self._f = activations.get(activation).f
        self._order = on_host(order).tolist() if isinstance(order, Tensor) else list(order)
        features = len(self._order)
        self._features = len(weights[-1]) // features
        self._weights, self._biases = list(weights), list(biases)
        if self._order != sorted(self._order):
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
        if not 0 <= k < len(self._order):
            raise ValueError(f"k must be in [0, {len(self._order)}), got {k}")
        if k > self.known:
            raise ValueError(f"k must be at most {self.known}, the number of known variables, got {k}")
        first = self._order[k] * self._features
        return self._linear(len(self._units), slice(first, first + self._features), k)


def _ends(degrees: Tensor, features: int) -> list[int]:
    """Number of units of a degree up to m, for m = 0, ..., features - 1."""
    degrees = on_host(degrees)
    if (degrees.diff() < 0).any():
        raise ValueError("degrees must be those of hidden units sorted by degree")
    return torch.searchsorted(degrees, torch.arange(features), right=True).tolist()
