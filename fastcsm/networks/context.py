"""What a context network answers; contexts variable by variable; contexts with the last layer left to do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import functional
from .readable import Readable, has_hooks


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
    #: S, values of every variable that one context serves: contexts are (B, S, D, C + X) where it is above 1.
    draws: int = 1

    def whole(self, dimensions: int) -> Tensor:
        """The contexts as one tensor, D being given."""
        context = functional.masked_linear(*self.layer).unflatten(-1, (dimensions, -1))
        if self.draws > 1:
            context = context.unsqueeze(1).expand(-1, self.draws, -1, -1)
        return context if self.extra is None else torch.cat([context, self.extra], -1)


def contexts(net: nn.Module, x: Tensor) -> Tensor | LinearContext:
    """The contexts of x (B, D), with the last layer left to do where the network can leave it."""
    last_layer = None if has_hooks(net) else getattr(net, "last_layer", None)
    found = last_layer(x) if last_layer else None
    return net(x) if found is None else found


def several(context: Tensor | LinearContext, draws: int) -> Tensor | LinearContext:
    """Contexts (B, D, C) for S values of every variable, (B, S, D, C)."""
    if isinstance(context, LinearContext):
        return context._replace(draws=draws)
    return context.unsqueeze(1).expand(-1, draws, -1, -1)


def shortcut(net: nn.Module, name: str) -> Any:
    """A method that answers without the network being called; None where calling it may do otherwise."""
    why = net.why_called() if isinstance(net, Readable) else has_hooks(net)
    return None if why else getattr(net, name, None)


def order_of(net: nn.Module, features: int) -> list[int]:
    """The order in which the network's variables are drawn."""
    return list(getattr(net, "order", range(features)))


def places_of(net: nn.Module, order: list[int], device: torch.device) -> Tensor:
    """The first variables of a network's order on the device, where it may have them already."""
    places = getattr(net, "places", None)
    return torch.tensor(order, device=device) if places is None else places[: len(order)]


def in_order(net: nn.Module, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Variables d in the order of drawing and their contexts (B, C), from x (B, D) as it is filled."""
    given = one_by_one(net, x)
    for k, d in enumerate(order_of(net, x.shape[1])):
        yield d, given.context(k, d)
    given.check()


class OneByOne:
    """Contexts from the values in x (B, D) of the variables before, by a network's units."""

    def __init__(self, units: Units, order: Sequence[int], x: Tensor):
        self._units, self._order, self._x = units, order, x

    def context(self, k: int, d: int) -> Tensor:
        """Context (B, C) of the variable d drawn k-th."""
        units = self._units
        while units.known < k:
            units.feed(self._x[:, self._order[units.known]])
        return units.context(k)

    def check(self) -> None:
        """Raise, with x whole, if the contexts are not those of x."""


class Called:
    """The same of a network that is called once a variable."""

    def __init__(self, net: nn.Module, x: Tensor):
        self._net, self._x = net, x
        self._contexts: dict[int, Tensor] = {}

    def context(self, k: int, d: int) -> Tensor:
        self._contexts[d] = self._net(self._x)[:, d]
        return self._contexts[d]

    def check(self) -> None:
        if not self._contexts:
            return
        expected = self._net(self._x)
        for d, context in self._contexts.items():
            off = (context - expected[:, d]).abs()
            allowed = torch.finfo(off.dtype).eps ** 0.5 * (1 + expected[:, d].abs().amax())
            if (off > allowed).any():
                raise ValueError(
                    f"context_net must be autoregressive and the same at every call; its context of variable"
                    f" {d} changed by {off.nan_to_num().max():.3g} with variables that are drawn after it"
                )


def one_by_one(net: nn.Module, x: Tensor) -> OneByOne | Called:
    """Contexts variable by variable, as x is filled."""
    units: Callable[..., Units] | None = shortcut(net, "units")
    if units is None:
        return Called(net, x)
    return OneByOne(units(len(x), x.dtype, x.device), order_of(net, x.shape[1]), x)
