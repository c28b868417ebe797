"""What a context network answers; contexts variable by variable; contexts with the last layer left to do."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import functional


class Units(Protocol):
    """What a draw keeps of a batch of samples: every unit of the network is computed once."""

    known: int

    def feed(self, value: Tensor) -> None:
        """Make the next variable in the order of drawing known: (B,)."""

    def context(self, k: int) -> Tensor:
        """Context (B, C) of the variable drawn k-th, the k before it being known."""


class ContextNet(Protocol):
    """An autoregressive module x (B, D) -> contexts (B, D, C), c_d reading the variables drawn before d.

    ``features``, D, and being called is all it must have. Where it has them, ``context_features``, C, is
    checked against the head, order[k] is the variable drawn k-th (raster order without it), ``units`` makes
    draws cost one pass in all, ``network`` lets one fused call draw whole samples, and ``last_layer`` saves
    forming (B, D, C).
    """

    features: int
    context_features: int
    order: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D, C)."""

    def units(self, batch: int, dtype: torch.dtype, device: torch.device) -> Units:
        """For draws variable by variable."""

    def network(self) -> functional.Network:
        """The layers of a MADE."""

    def last_layer(self, x: Tensor) -> "LinearContext | None":
        """The contexts of x (B, D) with the last layer left to do, or None where it must be called."""


class LinearContext(NamedTuple):
    """Contexts (..., D, C + X) that a masked linear layer gives, not computed yet; the losses take them.

    The context of dimension d is [rows d C ... (d + 1) C of (W * M) h + b, extra_d]. A loss that runs fused
    computes it block of dimensions by block of dimensions.
    """

    #: (hidden, weight, bias, in_degrees, out_degrees) as for :func:`fastcsm.functional.masked_linear`.
    layer: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]
    extra: Tensor | None = None

    def whole(self, dimensions: int) -> Tensor:
        """The contexts as one tensor, D being given."""
        context = functional.masked_linear(*self.layer).unflatten(-1, (dimensions, -1))
        return context if self.extra is None else torch.cat([context, self.extra], -1)


def contexts(net: nn.Module, x: Tensor) -> Tensor | LinearContext:
    """The contexts of x (B, D), with the last layer left to do where the network can leave it."""
    last_layer = getattr(net, "last_layer", None)
    found = last_layer(x) if last_layer else None
    return net(x) if found is None else found


def calls_forward(module: nn.Module) -> bool:
    """Whether calling the module runs its forward and no hook."""
    kinds = "forward", "forward_pre", "backward", "backward_pre"
    return not any(getattr(module, f"_{kind}_hooks") for kind in kinds)


def order_of(net: nn.Module, features: int) -> list[int]:
    """The order in which the network's variables are drawn."""
    return list(getattr(net, "order", range(features)))


def places_of(net: nn.Module, order: list[int], device: torch.device) -> Tensor:
    """The first variables of a network's order on the device, where it may have them already."""
    places = getattr(net, "places", None)
    return torch.tensor(order, device=device) if places is None else places[: len(order)]


def in_order(net: nn.Module, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Variables d in the order of drawing and their contexts (B, C), from x (B, D) as it is filled."""
    context = one_by_one(net, x)
    for k, d in enumerate(order_of(net, x.shape[1])):
        yield d, context(k, d)


def one_by_one(net: nn.Module, x: Tensor) -> Callable[[int, int], Tensor]:
    """Context of the variable d drawn k-th, from the values in x of those before it."""
    make: Callable[..., Units] | None = getattr(net, "units", None)
    if make is None:
        return lambda k, d: net(x)[:, d]
    units = make(len(x), x.dtype, x.device)
    order = order_of(net, x.shape[1])

    def context(k: int, d: int) -> Tensor:
        while units.known < k:
            units.feed(x[:, order[units.known]])
        return units.context(k)

    return context
