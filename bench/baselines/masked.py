"""Masked layers as they are written without fastcsm."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .head import ACTIVATIONS


def is_masked(module: nn.Module) -> bool:
    """Whether a module is a layer whose outputs read the inputs of no higher degree."""
    return hasattr(module, "in_degrees")


def mask_of(layer: Any) -> Tensor:
    """(outputs, inputs): True where an output reads an input."""
    return layer.in_degrees <= layer.out_degrees[:, None]


def parameters(model: nn.Module) -> int:
    """Number of weights that training can change: entries outside a mask do not count.

    Layers of other packages keep theirs under the name ``mask``.
    """
    count = 0
    for module in model.modules():
        mask = mask_of(module) if is_masked(module) else getattr(module, "mask", None)
        for name, value in module.named_parameters(recurse=False):
            count += value.numel() if mask is None or name != "weight" else int(mask.sum())
    return count


class PlainMaskedLinear(nn.Module):
    """A masked layer as a stored mask times the weight, which is what MADE packages do at every call.

    With ``folded`` the weight, already zero where there is no edge, is used as it is: a plain dense layer,
    whose gradient is not masked.
    """

    mask: Tensor

    def __init__(self, layer: Any, folded: bool = False):
        super().__init__()
        self.weight, self.bias, self.folded = layer.weight, layer.bias, folded
        self.activation = None if layer.activation is None else ACTIVATIONS[layer.activation]
        if not folded:
            self.register_buffer("mask", mask_of(layer).to(layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight if self.folded else self.weight * self.mask, self.bias)
        return y if self.activation is None else self.activation(y)


def use_plain_layers(module: nn.Module, folded: bool = False) -> nn.Module:
    """Put a :class:`PlainMaskedLinear` with the same parameters in the place of every masked layer."""
    for name, child in module.named_children():
        if is_masked(child):
            setattr(module, name, PlainMaskedLinear(child, folded))
        else:
            use_plain_layers(child, folded)
    return module


def sharing(module: nn.Module) -> nn.Module:
    """A copy of the modules that shares their parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})
