"""masked_linear: a whole MADE, forward, or forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcsm.nn import MADE

from ..baselines.masked import PlainMaskedLinear, is_masked, mask_of, sharing, use_plain_layers
from ..harness.case import Case, Contender, Outputs, own_contenders, widths


def made(features: int, hidden: Sequence[int], context: int, activation: str = "relu", seed: int = 0) -> MADE:
    """A MADE with the parameters of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MADE(features, hidden, context, activation=activation)


def _masked(net: nn.Module) -> list[Any]:
    """The masked layers, the output layer last."""
    return [layer for layer in net.modules() if is_masked(layer)]


def _edges(net: nn.Module) -> list[int]:
    return [int(mask_of(layer).sum()) for layer in _masked(net)]


def made_operations(net: nn.Module, batch: int, backward: bool) -> float:
    """Operations on the edges: the forward pass, and with ``backward`` the gradients of weights and inputs,
    those of the data left out."""
    counts = _edges(net)
    return 2.0 * batch * (3 * sum(counts) - counts[0] if backward else sum(counts))


def made_numbers(net: nn.Module) -> int:
    """Weights on the edges, and biases."""
    biases = sum(0 if layer.bias is None else layer.bias.numel() for layer in _masked(net))
    return sum(_edges(net)) + biases


@dataclass(frozen=True)
class MaskedLayers(Case):
    """MADE on a batch of data, float32: the contexts, or also the gradients of all weights and biases."""

    features: int = 784
    hidden: tuple[int, ...] = (2048, 2048)
    context: int = 32
    batch: int = 128
    activation: str = "relu"
    backward: bool = False

    op = "masked_linear"

    def title(self) -> str:
        sizes = f"D = {self.features}, hidden {widths(self.hidden)}, C = {self.context}, B = {self.batch}"
        return f"{self.op}: MADE {'forward and backward' if self.backward else 'forward'}, {sizes}"

    def operations(self) -> float:
        """2 an edge and sample; backward: 2 more of every layer for its weight, of all but the first for its
        input."""
        net = made(self.features, self.hidden, self.context)
        return made_operations(net, self.batch, self.backward)

    def bytes(self) -> float:
        """Data and parameters read, contexts written; backward: upstream read, gradients written."""
        contexts = self.batch * self.features * self.context
        parameters = made_numbers(made(self.features, self.hidden, self.context))
        count = self.batch * self.features + (1 + self.backward) * (contexts + parameters)
        return 4.0 * count

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.batch, self.hidden[-1], max(self.hidden)

    def variants(self) -> Sequence[MaskedLayers]:
        return [replace(self, backward=False), replace(self, backward=True)]

    def suite(self) -> Sequence[MaskedLayers]:
        return [replace(case, hidden=(512, 512), batch=64) for case in self.variants()]

    def quick(self) -> MaskedLayers:
        hidden = tuple(min(width, 256) for width in self.hidden)
        return replace(self, features=min(self.features, 128), batch=min(self.batch, 32), hidden=hidden)

    def warm(self) -> MaskedLayers:
        return replace(self, features=5, batch=4, hidden=tuple(8 for _ in self.hidden))

    def _inputs(self) -> tuple[MADE, Tensor, Tensor]:
        net = made(self.features, self.hidden, self.context, self.activation)
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(self.batch, self.features, generator=generator) * 2 - 1
        return net, x, torch.randn(self.batch, self.features, self.context, generator=generator)

    def _call(self, net: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], Outputs]:
        names, parameters = zip(*net.named_parameters(), strict=True)

        def forward() -> Outputs:
            with torch.no_grad():
                return {"context": net(x)}

        def backward() -> Outputs:
            y = net(x)
            return dict(zip(names, torch.autograd.grad(y, parameters, upstream), strict=True))

        return backward if self.backward else forward

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        net, *data = self._inputs()
        peer = use_plain_layers(sharing(net))
        masks = {
            f"{name}.weight": layer.mask
            for name, layer in peer.named_modules()
            if isinstance(layer, PlainMaskedLinear)
        }
        dense = self._call(use_plain_layers(sharing(net), folded=True), *data)

        def masked() -> Outputs:
            return {name: value * masks.get(name, 1) for name, value in dense().items()}

        label, plain = "mask * weight, then dense", self._call(peer, *data)
        found = {"peers": Contender(label, plain)}
        if "medium" in precisions:
            found["peers_medium"] = Contender(f'{label}, "medium"', plain, precision="medium")
        found["folded"] = Contender("dense, masks folded in beforehand", dense, check=masked)
        return found | own_contenders(self._call(net, *data), precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        net, *data = self._inputs()
        wide = use_plain_layers(net.double())
        return self._call(wide, *(tensor.double() for tensor in data))(), {}
