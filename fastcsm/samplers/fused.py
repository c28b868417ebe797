"""Draws of whole samples by one function for all: MADEs and heads that run fused."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..densities import Conditionals
from ..networks.context import shortcut
from ..networks.heads import Fused, Part
from .batch import Batch

#: Samples of one call and parts of its variables: between two calls progress is told and Ctrl-C heard.
_ROWS, _PARTS, _EXACT_PARTS = 256, 20, 4
#: On other devices one call draws all, as far as the values of the networks' units fit in so many bytes; and
#: where progress is wanted so many parts: each computes anew the units that are known before it.
_DEVICE_BYTES, _DEVICE_PARTS = 512 << 20, 4


class FusedDraw:
    """Draws by one function of :mod:`fastcsm.functional`."""

    def __init__(self, function: Callable[..., Any], networks: Sequence[functional.Network], parts: int):
        self._function, self._networks, self._parts = function, networks, parts

    @property
    def batch_size(self) -> int:
        """Samples to draw together."""
        network = self._networks[-1]
        if network.weights[0].device.type == "cpu":
            return _ROWS
        # One more for the sums of a residual network.
        units = (len(self._networks) + 1) * sum(map(len, network.degrees))
        return max(_DEVICE_BYTES // (4 * units), 1)

    def __call__(self, batch: Batch) -> Tensor:
        """x (B, D) with the variables drawn, denoised where that is asked for."""
        x, samples, seed, order, known, variance, tell = batch
        parts, places = self._parts, self._networks[-1].order
        if x.device.type != "cpu":
            parts = _DEVICE_PARTS if tell else 1
        clean, size = x, max(len(order) // parts, 1)
        for first in range(known, len(order), size):
            last = min(first + size, len(order))
            draw = functional.Draw(seed, samples, first, last, variance)
            x, part = self._function(x, draw=draw)
            if first == known:
                clean = part
            else:
                clean[:, places[first:last]] = part[:, places[first:last]]
            if tell:
                if x.is_cuda:
                    torch.cuda.current_stream(x.device).synchronize()
                tell(last)
        return clean


def langevin(parts: Sequence[Part], stages: Sequence[functional.Stages]) -> FusedDraw | None:
    """By ``functional.langevin_draw``; None if a part cannot."""
    found = _layers(parts)
    if found is None:
        return None
    heads, networks = found
    whole = stages[0]._replace(step_sizes=[size for own in stages for size in own.step_sizes])
    draw = partial(functional.langevin_draw, head=heads, network=networks, stages=whole)
    return FusedDraw(draw, networks, _PARTS)


def exact(part: Part, rows: Conditionals) -> FusedDraw | None:
    """By ``functional.conditional_density_draw``; None if the part cannot."""
    found = _layers([part])
    if found is None:
        return None
    (head,), networks = found
    own = {"head": head, "network": networks[0]} | rows.draw_options()
    return FusedDraw(partial(functional.conditional_density_draw, **own), networks, _EXACT_PARTS)


def _layers(parts: Sequence[Part]) -> tuple[list[functional.Head], list[functional.Network]] | None:
    """The raw tensors of all parts; None if one of them has other ways than that."""
    heads, networks = [], []
    for part in parts:
        network = shortcut(part.context_net, "network")
        if network is None or not isinstance(part.head, Fused):
            return None
        heads.append(part.head.layers)
        networks.append(network())
    return heads, networks
