"""The argument checks of ``functional``: one clear sentence for what is wrong, or contiguous rows."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import activations
from .host import on_host

Coefficient = float | Tensor | None


class Head(NamedTuple):
    """Checked rows and layers of a head, contiguous, in the order the ops take them."""

    context: Tensor
    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    frequencies: Tensor
    activation: str


class Masked(NamedTuple):
    """Checked arguments of a masked layer, contiguous, in the order the ops take them."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    in_degrees: Tensor
    out_degrees: Tensor


class Draw(NamedTuple):
    """Checked arguments of a draw, in the order the ops take them: before and after those of its kind."""

    model: tuple[Any, ...]
    range: tuple[Tensor, int, int]


class Stages(NamedTuple):
    """Checked arguments of the stages of Langevin dynamics, in the order the ops take them."""

    sizes: list[float]
    scales: list[float]
    features: list[float]
    steps: int
    seed: int


def head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    frequencies: Tensor | None,
    activation: str,
    supplied: int = 0,
) -> Head:
    """A head with context (..., C) and x (...) as rows; the op adds ``supplied`` context features."""
    floating("context", context)
    like("x", x, context, None)
    if context.dim() != x.dim() + 1 or context.shape[:-1] != x.shape:
        raise ValueError(
            f"x must have the shape of context without its last axis, {tuple(context.shape[:-1])},"
            f" got {tuple(x.shape)}"
        )
    features = context.shape[-1]
    return Head(
        context.reshape(x.numel(), features).contiguous(),
        x.reshape(-1).contiguous(),
        *layers(context, features + supplied, weights, biases, frequencies, activation),
    )


def layers(
    first: Tensor,
    features: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    frequencies: Tensor | None,
    activation: str,
) -> tuple[list[Tensor], list[Tensor], Tensor, str]:
    """The layers of a head with ``features`` context features, of the dtype and device of ``first``."""
    activations.get(activation)
    if frequencies is None:
        frequencies = first.new_empty(0)
    like("frequencies", frequencies, first, 1)
    if len(weights) < 2:
        raise ValueError(f"weights must hold at least 2 matrices (one hidden layer), got {len(weights)}")
    if len(biases) != len(weights):
        raise ValueError(
            f"biases must hold one entry for each of the {len(weights)} weights, got {len(biases)}"
        )
    inputs = features + 1 + 2 * frequencies.shape[0]
    full = []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        like(f"weights[{k}]", weight, first, 2)
        outputs = 1 if k == len(weights) - 1 else weight.shape[0]
        shape(f"weights[{k}]", weight, (outputs, inputs))
        bias = weight.new_zeros(outputs) if bias is None else bias
        like(f"biases[{k}]", bias, first, 1)
        shape(f"biases[{k}]", bias, (outputs,))
        full.append(bias.contiguous())
        inputs = outputs
    return [weight.contiguous() for weight in weights], full, frequencies.contiguous(), activation


def masked(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, in_degrees: Tensor, out_degrees: Tensor
) -> Masked:
    """A masked layer and its input (..., I), called ``name``, as rows (B, I)."""
    floating(name, x)
    like("weight", weight, x, 2)
    outputs, inputs = weight.shape
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(f"{name} must have shape (..., {inputs}) to match weight, got {tuple(x.shape)}")
    bias = weight.new_zeros(outputs) if bias is None else bias
    like("bias", bias, x, 1)
    shape("bias", bias, (outputs,))
    for label, degrees, size in (("in_degrees", in_degrees, inputs), ("out_degrees", out_degrees, outputs)):
        if degrees.dtype is not torch.int64 or degrees.device != x.device:
            raise TypeError(f"{label} must be int64 on {x.device}, got {degrees.dtype} on {degrees.device}")
        shape(label, degrees, (size,))
    return Masked(
        x.reshape(x.shape[:-1].numel(), inputs).contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        in_degrees.contiguous(),
        out_degrees.contiguous(),
    )


def autocast(*values: Any, wide: bool = False) -> tuple[Any, ...]:
    """The arguments of a call; where torch.autocast is on for the first one's device, in the dtype it means.

    As for torch.nn.functional.linear that is autocast's own dtype; where ``wide``, as for functions that need
    the range or precision, float32. Tensors of float64 stay as they are, and so does all that is no tensor.
    """
    device = values[0].device.type if isinstance(values[0], Tensor) else "cpu"
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return values
    dtype = torch.float32 if wide else torch.get_autocast_dtype(device)

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64:
            return value.to(dtype)
        return value

    return tuple(cast(value) for value in values)


def floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {value.dtype}")


def like(name: str, value: Tensor, other: Tensor, dim: int | None) -> None:
    """``value`` must be a tensor of the dtype and device of ``other``, with ``dim`` axes unless None."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype is not other.dtype or value.device != other.device:
        raise TypeError(
            f"{name} must be {other.dtype} on {other.device} like the first argument,"
            f" got {value.dtype} on {value.device}"
        )
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} axes, got shape {tuple(value.shape)}")


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")


def coefficients(alpha: Coefficient, beta: Coefficient, gamma: Coefficient, x: Tensor) -> list[Tensor]:
    """The row coefficients of the loss, (1,) or (N,) each, by default 1, 1 and 0."""
    given = (("alpha", alpha, 1.0), ("beta", beta, 1.0), ("gamma", gamma, 0.0))
    return [_coefficient(name, default if value is None else value, x) for name, value, default in given]


def _coefficient(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    known = isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"
    if known and not value.requires_grad and x.device.type != "cpu" and not torch.compiler.is_compiling():
        value = value.item()  # a copy of the tensor to the device would be waited for
    if not isinstance(value, Tensor):
        return torch.full((1,), value, dtype=dtype, device=x.device)
    if value.device != x.device and value.dim() > 0:
        raise TypeError(f"{name} must be on {x.device} like x, got {value.device}")
    value = value.to(device=x.device, dtype=dtype)
    if value.numel() == 1:
        return value.reshape(1)
    try:
        return value.expand(x.shape).reshape(-1).contiguous()
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
        ) from None


def network(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], degrees: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of the hidden layers and the output layer of a MADE on x (B, D)."""
    if not degrees or len(weights) != len(degrees) + 1 or len(biases) != len(weights):
        raise ValueError(
            "made_weights and made_biases must hold one entry for each of degrees and one for the output, got"
            f" {len(weights)} and {len(biases)} for {len(degrees)} degrees"
        )
    inputs, full = x.shape[1], []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        like(f"made_weights[{k}]", weight, x, 2)
        outputs = weight.shape[0]
        if k < len(degrees):
            if degrees[k].dtype is not torch.int64 or degrees[k].device != x.device:
                found = f"{degrees[k].dtype} on {degrees[k].device}"
                raise TypeError(f"degrees[{k}] must be int64 on {x.device}, got {found}")
            outputs = degrees[k].numel()
        shape(f"made_weights[{k}]", weight, (outputs, inputs))
        bias = weight.new_zeros(outputs) if bias is None else bias
        like(f"made_biases[{k}]", bias, x, 1)
        shape(f"made_biases[{k}]", bias, (outputs,))
        full.append(bias.contiguous())
        inputs = outputs
    if inputs % max(x.shape[1], 1):
        raise ValueError(f"made_weights[-1] must have a multiple of {x.shape[1]} rows, got {inputs}")
    return [weight.contiguous() for weight in weights], full


def stages(
    step_sizes: Sequence[float],
    score_scales: Sequence[float] | None,
    stage_features: Sequence[float] | None,
    steps: int,
    seed: int,
) -> Stages:
    """The stages of Langevin dynamics."""
    sizes = floats("step_sizes", step_sizes, None)
    if any(size < 0 for size in sizes):
        raise ValueError(f"step_sizes must not be negative, got {min(sizes)}")
    scales = [1.0] * len(sizes) if score_scales is None else floats("score_scales", score_scales, len(sizes))
    features = [] if stage_features is None else floats("stage_features", stage_features, len(sizes))
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    return Stages(sizes, scales, features, steps, signed_seed(seed))


def signed_seed(seed: int) -> int:
    """The seed as a signed integer of the same bits."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def floats(name: str, values: Sequence[float], length: int | None) -> list[float]:
    values = [float(value) for value in values]
    if length is not None and len(values) != length:
        raise ValueError(f"{name} must have one entry for each of the {length} step_sizes, got {len(values)}")
    return values


def integers(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Integers of the shape of x, as (N,) int64."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.device != x.device:
        got = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an integer tensor on {x.device}, got {got}")
    shape(name, value, tuple(x.shape))
    return value.reshape(-1).to(torch.int64).contiguous()


def tolerance(value: float | None, x: Tensor) -> float:
    """The tolerance of an adaptive method, by default 1e-7 in float64 and 1e-4 otherwise."""
    if value is None:
        return 1e-7 if x.dtype is torch.float64 else 1e-4
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"tolerance must be a positive number, got {value}")
    return float(value)


def interval(low: float, high: float, panels: int) -> tuple[float, float, int]:
    """Where the panels of a quadrature begin, and their number."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    if not 1 <= panels <= 16:
        raise ValueError(f"panels must be in [1, 16], got {panels}")
    return float(low), float(high), panels


def permutation(name: str, value: Sequence[int] | Tensor | None, size: int, device: torch.device) -> Tensor:
    """A permutation of range(size), by default the identity, as (size,) int64 on the device."""
    if value is None:
        return torch.arange(size, device=device)
    if isinstance(value, Tensor):
        if value.dtype is not torch.int64 or value.device != device:
            raise TypeError(f"{name} must be int64 on {device}, got {value.dtype} on {value.device}")
        entries = on_host(value).tolist()
    else:
        entries = [int(entry) for entry in value]
    if sorted(entries) != list(range(size)):
        raise ValueError(f"{name} must be a permutation of range({size}), got {entries}")
    return torch.tensor(entries, device=device) if not isinstance(value, Tensor) else value.contiguous()


def draw(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor | None]],
    frequencies: Tensor | None,
    activation: str,
    made_weights: Sequence[Sequence[Tensor]],
    made_biases: Sequence[Sequence[Tensor | None]],
    degrees: Sequence[Tensor],
    order: Sequence[int] | Tensor | None,
    made_activation: str,
    residual: bool,
    stages: int,
    stage_feature: bool,
    samples: Tensor | None,
    first: int,
    last: int | None,
) -> Draw:
    """A draw by one head and network, or one of each a stage; the op may add a last context feature."""
    floating("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must have shape (samples, variables), got {tuple(x.shape)}")
    batch, variables = x.shape
    places = permutation("order", order, variables, x.device)
    last = variables if last is None else last
    if not 0 <= first <= last <= variables:
        raise ValueError(
            f"first and last must satisfy 0 <= first <= last <= {variables}, got {first}, {last}"
        )
    models = len(weights)
    equal = len(biases) == len(made_weights) == len(made_biases) == models
    if not equal or models not in (1, stages):
        raise ValueError(
            f"weights, biases, made_weights and made_biases must have 1 or {stages} entries, one"
            f" for each of step_sizes, got {[len(w) for w in (weights, biases, made_weights, made_biases)]}"
        )
    activations.get(made_activation)
    networks = [network(x, w, b, degrees) for w, b in zip(made_weights, made_biases, strict=True)]
    features = networks[0][0][-1].shape[0] // max(variables, 1) + int(stage_feature)
    heads = [layers(x, features, w, b, frequencies, activation) for w, b in zip(weights, biases, strict=True)]
    samples = torch.arange(batch, device=x.device) if samples is None else samples
    model = (
        x.contiguous(),
        [weight for head in heads for weight in head[0]],
        [bias for head in heads for bias in head[1]],
        heads[0][2],
        activation,
        [weight for made in networks for weight in made[0]],
        [bias for made in networks for bias in made[1]],
        [degree.contiguous() for degree in degrees],
        places,
        made_activation,
        residual,
    )
    return Draw(model, (integers("samples", samples, x.new_empty(batch)), first, last))
