"""masked_linear: a whole MADE, forward, or forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastcsm.nn import MADE

from ..baselines.masked import PlainMaskedLinear, is_masked, mask_of, parameters, sharing, use_plain_layers
from ..harness.case import Case, Contender, Outputs, own_contenders, widths


def made(features: int, hidden: Sequence[int], context: int, activation: str = "relu", seed: int = 0) -> MADE:
    """A MADE with the parameters of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MADE(features, hidden, context, activation=activation)


def made_operations(net: nn.Module, batch: int, backward: bool) -> float:
    """Operations on the edges: the forward pass, and with ``backward`` the gradients of weights and inputs,
    those of the data left out."""
    counts = [int(mask_of(layer).sum()) for layer in net.modules() if is_masked(layer)]
    return 2.0 * batch * (3 * sum(counts) - counts[0] if backward else sum(counts))


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
    quick_sizes: ClassVar = {"features": 128, "batch": 32, "hidden": 256}
    warm_sizes: ClassVar = {"features": 5, "batch": 4, "hidden": 8}

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
        read = parameters(made(self.features, self.hidden, self.context))
        count = self.batch * self.features + (1 + self.backward) * (contexts + read)
        return 4.0 * count

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.batch, self.hidden[-1], max(self.hidden)

    def variants(self) -> Sequence[MaskedLayers]:
        return [replace(self, backward=False), replace(self, backward=True)]

    def suite(self) -> Sequence[MaskedLayers]:
        return [replace(case, hidden=(512, 512), batch=64) for case in self.variants()]

    def _inputs(self) -> tuple[MADE, Tensor, Tensor]:
        net = made(self.features, self.hidden, self.context, self.activation)
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(self.batch, self.features, generator=generator) * 2 - 1
        return net, x, torch.randn(self.batch, self.features, self.context, generator=generator)

    def _call(self, net: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], Outputs]:
        names, leaves = zip(*net.named_parameters(), strict=True)

        def forward() -> Outputs:
            with torch.no_grad():
                return {"context": net(x)}

        def backward() -> Outputs:
            y = net(x)
            return dict(zip(names, torch.autograd.grad(y, leaves, upstream), strict=True))

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
