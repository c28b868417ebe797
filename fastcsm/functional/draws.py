"""The argument checks of draws of whole samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import activations
from ..reference.incremental import on_host
from ..reference.network import Head, Network
from .arguments import bias_of, degrees_of, floating, integers, layers, like, permutation, shape, signed_seed

Layers = TypeVar("Layers", Head, Network)


class Draw(NamedTuple):
    """Which samples and variables a draw draws.

    Attributes:
        seed: integer in [0, 2^64).
        samples: (B,) integers that number the samples; 0, 1, ... by default.
        first, last: the places in the order to draw; all by default.
        denoise: variance v of the noise that the second result is freed of.
    """

    seed: int = 0
    samples: Tensor | None = None
    first: int = 0
    last: int | None = None
    denoise: float = 0.0


def checked(
    x: Tensor,
    head: Head | Sequence[Head],
    network: Network | Sequence[Network],
    given: Draw,
    stages: int = 1,
    own: bool = False,
) -> tuple[Tensor, Head, Network, Draw]:
    """A draw by one head and network, or one of each a stage, whose layers are then put in a row.

    With ``own`` the op adds a last context feature.
    """
    floating("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must have shape (samples, variables), got {tuple(x.shape)}")
    batch, variables = x.shape
    seed, samples, first, last, denoise = given
    last = variables if last is None else last
    if not 0 <= first <= last <= variables:
        raise ValueError(
            f"first and last must satisfy 0 <= first <= last <= {variables}, got {first}, {last}"
        )
    networks = [_network(x, one, of) for of, one in _named("network", network, Network)]
    features = networks[0].weights[-1].shape[0] // max(variables, 1) + int(own) if networks else 0
    heads = [layers(x, features, one, of) for of, one in _named("head", head, Head)]
    if len(heads) != len(networks) or len(heads) not in (1, stages):
        wanted = "one each" if stages == 1 else f"one each, or one for each of the {stages} step_sizes"
        raise ValueError(f"head and network must be {wanted}, got {len(heads)} and {len(networks)}")
    samples = torch.arange(batch, device=x.device) if samples is None else samples
    samples = integers("samples", samples, x.new_empty(batch))
    draw = Draw(signed_seed(seed), samples, first, last, float(denoise))
    return x.contiguous(), _in_a_row("head", heads), _in_a_row("network", networks), draw


def _named(name: str, given: Layers | Sequence[Layers], kind: type[Layers]) -> list[tuple[str, Layers]]:
    """One or several, each with what the names of its fields begin with in messages."""
    found: list[tuple[str, str, Any]]
    if isinstance(given, kind) or not isinstance(given, (list, tuple)):
        found = [(name, f"a {kind.__name__} or a sequence of them", given)]
    else:
        found = [(f"{name}[{n}]", f"a {kind.__name__}", one) for n, one in enumerate(given)]
    for label, wanted, one in found:
        if not isinstance(one, kind):
            raise TypeError(f"{label} must be {wanted}, got {type(one).__name__}")
    return [(f"{label}.", one) for label, _, one in found]


def _in_a_row(name: str, models: list[Layers]) -> Layers:
    """All models as one, their layers one after the other; all else must be the same."""
    first = models[0]
    for n, model in enumerate(models[1:], 1):
        if len(model.weights) != len(first.weights):
            raise ValueError(
                f"{name}[{n}] must have {len(first.weights)} layers like {name}[0], got {len(model.weights)}"
            )
        for field in first._fields[2:]:
            if not _same(getattr(model, field), getattr(first, field)):
                raise ValueError(f"{name}[{n}].{field} must be that of {name}[0]")
    weights = [weight for model in models for weight in model.weights]
    return first._replace(weights=weights, biases=[bias for model in models for bias in model.biases])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor):
        return a is b or (a.shape == b.shape and (a.numel() == 0 or torch.equal(on_host(a), on_host(b))))
    return a == b


def _network(x: Tensor, given: Network, of: str = "network.") -> Network:
    """The hidden layers and the output layer of a MADE on x (B, D), and its order as a tensor on the device.

    ``of`` is what the names of its fields begin with in messages.
    """
    weights, biases, degrees, order, activation, residual = given
    if not degrees or len(weights) != len(degrees) + 1 or len(biases) != len(weights):
        raise ValueError(
            f"{of}weights and {of}biases must hold one entry for each of degrees and one for the output, got"
            f" {len(weights)} and {len(biases)} for {len(degrees)} degrees"
        )
    activations.get(activation)
    variables, inputs, full = x.shape[1], x.shape[1], []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        like(f"{of}weights[{k}]", weight, x, 2)
        outputs = weight.shape[0]
        if k < len(degrees):
            outputs = degrees[k].numel()
            degrees_of(f"{of}degrees[{k}]", degrees[k], outputs, x.device)
        shape(f"{of}weights[{k}]", weight, (outputs, inputs))
        full.append(bias_of(f"{of}biases[{k}]", bias, weight))
        inputs = outputs
    if inputs % max(variables, 1):
        raise ValueError(f"{of}weights[-1] must have a multiple of {variables} rows, got {inputs}")
    order = permutation(f"{of}order", order, variables, x.device)
    weights, degrees = ([tensor.contiguous() for tensor in part] for part in (weights, degrees))
    return Network(weights, full, degrees, order, activation, residual)
