"""The two networks of a draw, and contexts in the order of drawing by whole masked passes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import activations
from .masked_linear import masked_linear


class Head(NamedTuple):
    """The layers of a score head, in the order the ops take them.

    Attributes:
        weights: K + 1 matrices in nn.Linear's layout, (H_1, C + 1 + 2E), (H_2, H_1), ..., (1, H_K), K >= 1.
        biases: K + 1 vectors (H_1,), ..., (1,); None stands for zeros.
        frequencies: (E,), or None for no frequencies.
        activation: a name of :mod:`fastcsm.activations`.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Any]
    frequencies: Any = None
    activation: str = "silu"


class Network(NamedTuple):
    """The layers of a MADE, whose outputs are contexts, in the order the ops take them.

    Attributes:
        weights: the hidden layers, (H_1, D), (H_2, H_1), ..., then the output layer, whose D * C rows are the
            contexts by variable.
        biases: one vector a layer; None stands for zeros.
        degrees: int64 (H_l,) for each hidden layer, sorted, at least 1; variable order[k] has degree k + 1.
        order: permutation of range(D), in sequence by default. An int64 tensor on the device of the samples
            is read by the host once; integers are copied to the device at every call, which a GPU waits for.
        activation, residual: as for :class:`fastcsm.nn.MADE`.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Any]
    degrees: Sequence[Tensor]
    order: Any = None
    activation: str = "relu"
    residual: bool = False


def contexts_in_order(
    x: Tensor, network: Network, first: int, last: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Variables d = order[k], k = first, ..., last - 1, and their contexts (B, C), one of each network.

    Args:
        x: (B, D); read again after each variable, when its value is there.
        network: checked, its order a tensor; the weights and biases of several networks lie in a row.
        first, last: the places in the order.
    """
    weights, biases, degrees, order, *_ = network
    inputs = torch.empty_like(order)
    inputs[order] = torch.arange(1, len(order) + 1, device=order.device)
    layers = len(degrees) + 1
    features = weights[layers - 1].shape[0] // len(order)
    known = torch.zeros_like(x)
    known[:, order[:first]] = x[:, order[:first]]
    for k in range(first, last):
        d = int(order[k])
        rows, own = slice(d * features, (d + 1) * features), torch.full((features,), k, device=x.device)
        contexts = []
        for m in range(0, len(weights), layers):
            w, b = weights[m : m + layers], biases[m : m + layers]
            h = _hidden(known, network._replace(weights=w, biases=b, degrees=[inputs, *degrees]))
            contexts.append(masked_linear(h, w[-1][rows], b[-1][rows], degrees[-1], own, "identity")[0])
        yield d, contexts
        known[:, d] = x[:, d]


def _hidden(x: Tensor, network: Network) -> Tensor:
    """Last hidden activations (B, H) of the network, whose degrees begin with those of x."""
    weights, biases, degrees, _, activation, residual = network
    f = activations.get(activation).f
    for l, (below, own) in enumerate(pairwise(degrees)):
        if not residual or l % 2 == 1:
            y = masked_linear(f(x) if residual else x, weights[l], biases[l], below, own, activation)[0]
        else:
            y = masked_linear(x if l == 0 else y, weights[l], biases[l], below, own, "identity")[0]
            y = x = y if l == 0 else x + y
        if not residual:
            x = y
    return f(x) if residual else x
