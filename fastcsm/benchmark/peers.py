"""Masked layers as they are written without fastcsm."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from .. import activations
from ..nn import MADE, MaskedLinear

__all__ = ["PlainMaskedLinear", "edges", "made_numbers", "made_operations", "sharing", "use_plain_layers"]


class PlainMaskedLinear(nn.Module):
    """MaskedLinear as a stored mask times the weight, which is what MADE packages do at every call.

    With ``folded`` the weight, already zero where there is no edge, is used as it is: a plain dense layer,
    whose gradient is not masked.
    """

    mask: Tensor

    def __init__(self, layer: MaskedLinear, folded: bool = False):
        super().__init__()
        self.weight, self.bias, self.folded = layer.weight, layer.bias, folded
        self.activation = None if layer.activation is None else activations.get(layer.activation).f
        if not folded:
            self.register_buffer("mask", _mask(layer).to(layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight if self.folded else self.weight * self.mask, self.bias)
        return y if self.activation is None else self.activation(y)


def use_plain_layers(module: nn.Module, folded: bool = False) -> nn.Module:
    """Put a :class:`PlainMaskedLinear` with the same parameters in the place of every masked layer."""
    for name, child in module.named_children():
        if isinstance(child, MaskedLinear):
            setattr(module, name, PlainMaskedLinear(child, folded))
        else:
            use_plain_layers(child, folded)
    return module


def sharing(module: nn.Module) -> nn.Module:
    """A copy of the modules that shares their parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _mask(layer: MaskedLinear) -> Tensor:
    return layer.in_degrees <= layer.out_degrees[:, None]


def edges(made: MADE) -> list[int]:
    """Edges of each masked layer, the output layer last."""
    return [int(_mask(layer).sum()) for layer in made.modules() if isinstance(layer, MaskedLinear)]


def made_operations(made: MADE, batch: int, backward: bool) -> float:
    """Operations on the edges: the forward pass, and with ``backward`` the gradients of weights and inputs,
    those of the data left out."""
    counts = edges(made)
    return 2.0 * batch * (3 * sum(counts) - counts[0] if backward else sum(counts))


def made_numbers(made: MADE) -> int:
    """Weights on the edges, and biases."""
    biases = [layer.bias for layer in made.modules() if isinstance(layer, MaskedLinear)]
    return sum(edges(made)) + sum(bias.numel() for bias in biases if bias is not None)
