"""The argument checks of ``functional``: one clear sentence for what is wrong, or contiguous rows."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import activations
from ..ops.library import is_autocast_on, is_eager
from ..ops.masked_linear import Layer
from ..reference.incremental import on_host
from ..reference.network import Head
from ..reference.quadrature import Interval

Coefficient = float | Tensor | None


class Rows(NamedTuple):
    """Checked rows of a head, contiguous, (..., C) and (...)."""

    context: Tensor
    x: Tensor

    def flat(self) -> "Rows":
        """The rows as (N, C) and (N,), for ops that are for no other shape."""
        context, x = self
        return self if x.dim() == 1 else Rows(context.reshape(x.numel(), context.shape[-1]), x.reshape(-1))


class Stages(NamedTuple):
    """The stages of Langevin dynamics.

    Attributes:
        step_sizes: e_i >= 0, one a stage.
        steps: Langevin steps a stage.
        score_scales: factors of the head's output, one a stage; 1 by default.
        features: one value a stage, the last context feature of every row during that stage.
    """

    step_sizes: Sequence[float]
    steps: int
    score_scales: Sequence[float] | None = None
    features: Sequence[float] | None = None


def rows(
    context: Tensor, x: Tensor, head: Head, supplied: int = 0, *, wide: bool = False
) -> tuple[Rows, Head]:
    """Context (..., C) and x (...) of rows, and their head; the op adds ``supplied`` context features.

    They are in the dtype that :func:`autocast` means.
    """
    if wide or (isinstance(context, Tensor) and is_autocast_on(_device_type(context))):
        context, x, *layers_of = autocast(context, x, *head, wide=wide)
        head = Head(*layers_of)
    floating("context", context)
    like("x", x, context, None)
    *shape, features = context.shape or (0,)
    if x.shape != (*shape,) or context.dim() == 0:
        raise ValueError(
            f"x must have the shape of context without its last axis, {tuple(context.shape[:-1])},"
            f" got {tuple(x.shape)}"
        )
    return Rows(context.contiguous(), x.contiguous()), layers(context, features + supplied, head)


def layers(first: Tensor, features: int, head: Head, of: str = "") -> Head:
    """The head with ``features`` context features, of the dtype and device of ``first``.

    ``of`` is what the names of its fields begin with in messages.
    """
    weights, biases, frequencies, activation = head
    activations.get(activation)
    if frequencies is None:
        frequencies = _kept(0.0, first.dtype, 0) if _keeps(first) else first.new_empty(0)
    else:
        like(f"{of}frequencies", frequencies, first, 1)
        if frequencies.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{of}frequencies must not require a gradient: they are fixed, no op computes theirs"
            )
    if len(weights) < 2:
        raise ValueError(f"{of}weights must hold at least 2 matrices (one hidden layer), got {len(weights)}")
    if len(biases) != len(weights):
        raise ValueError(
            f"{of}biases must hold one entry for each of the {len(weights)} weights, got {len(biases)}"
        )
    inputs = features + 1 + 2 * frequencies.shape[0]
    if not _fit(weights, biases, inputs, first):
        full = list(biases)
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            like(f"{of}weights[{k}]", weight, first, 2)
            outputs = 1 if k == len(weights) - 1 else weight.shape[0]
            shape(f"{of}weights[{k}]", weight, (outputs, inputs))
            full[k] = bias_of(f"{of}biases[{k}]", bias, weight)
            inputs = outputs
        biases = full
    contiguous = Tensor.contiguous
    return Head([*map(contiguous, weights)], [*map(contiguous, biases)], contiguous(frequencies), activation)


def _fit(weights: Sequence[Tensor], biases: Sequence[Tensor | None], inputs: int, first: Tensor) -> bool:
    """Whether :func:`layers` has nothing to say to these, in the fewest questions."""
    dtype, device, cpu = first.dtype, first.device, first.is_cpu
    try:
        for weight, bias in zip(weights, biases, strict=True):
            outputs, columns = weight.shape
            if columns != inputs or bias.shape != (outputs,):
                return False
            if weight.dtype is not dtype or bias.dtype is not dtype:
                return False
            if not (cpu and weight.is_cpu and bias.is_cpu) and not (weight.device == bias.device == device):
                return False
            inputs = outputs
    except (AttributeError, ValueError):  # no tensors, or no matrix
        return False
    return inputs == 1


def bias_of(name: str, bias: Tensor | None, weight: Tensor) -> Tensor:
    """The bias of a layer with this weight; None stands for zeros."""
    if bias is None:
        return weight.new_zeros(weight.shape[0])
    like(name, bias, weight, 1)
    shape(name, bias, (weight.shape[0],))
    return bias.contiguous()


def masked(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, in_degrees: Tensor, out_degrees: Tensor
) -> Layer:
    """A masked layer and its input (..., I), called ``name``, as rows (B, I)."""
    floating(name, x)
    like("weight", weight, x, 2)
    outputs, inputs = weight.shape
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(f"{name} must have shape (..., {inputs}) to match weight, got {tuple(x.shape)}")
    bias = bias_of("bias", bias, weight)
    in_degrees = degrees_of("in_degrees", in_degrees, inputs, x.device)
    out_degrees = degrees_of("out_degrees", out_degrees, outputs, x.device)
    x = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), inputs)
    return Layer(x.contiguous(), weight.contiguous(), bias, in_degrees, out_degrees)


def autocast(*values: Any, wide: bool = False) -> tuple[Any, ...]:
    """The arguments of a call; where torch.autocast is on for the first one's device, in the dtype it means.

    As for torch.nn.functional.linear that is autocast's own dtype; where ``wide``, as for functions that need
    the range or precision, float32, and for float16, which has not the range, without autocast too. Tensors
    of float64 stay as they are, and so does all that is no tensor.
    """
    first = values[0] if isinstance(values[0], Tensor) else torch.empty(())
    device, half = _device_type(first), wide and first.dtype is torch.float16
    if not (half or is_autocast_on(device)):
        return values
    dtype = torch.float32 if wide else torch.get_autocast_dtype(device)

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64:
            return value.to(dtype)
        return value

    return tuple(cast(value) for value in values)


def _device_type(value: Tensor) -> str:
    return "cpu" if value.is_cpu else value.device.type


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


def degrees_of(name: str, value: Tensor, size: int, device: torch.device) -> Tensor:
    """Degrees of a layer, (size,) int64 on the device."""
    if value.dtype is not torch.int64 or value.device != device:
        raise TypeError(f"{name} must be int64 on {device}, got {value.dtype} on {value.device}")
    shape(name, value, (size,))
    return value.contiguous()


def at_least(least: int, **values: int) -> None:
    """Every value must be a whole number, at least so large; they are named in the message."""
    for name, value in values.items():
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def widths(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Sizes of layers, at least one, each at least 1."""
    try:
        found = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of whole numbers, got {values!r}") from None
    at_least(1, **{name: min(found, default=0)})
    return found


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """The value must be one of the words that are known."""
    words = tuple(known)
    if value not in words:
        *others, last = map(repr, words)
        raise ValueError(f"{name} must be {', '.join(others) + ' or ' * bool(others)}{last}, got {value!r}")


def positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")
    return float(value)


def squash_of(value: float | None, levels: str = "", given: bool = True) -> float:
    """u0 of a preconditioned head as the ops take it, 0 for None, a plain head; its levels must be given."""
    if value is not None and not given:
        raise ValueError(f"{levels} must be given with squash: log sigma")
    return 0.0 if value is None else positive("squash", value)


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")


def coefficients(alpha: Coefficient, beta: Coefficient, gamma: Coefficient, x: Tensor) -> list[Tensor]:
    """The row coefficients of the loss, (1,) or (N,) each, by default 1, 1 and 0."""
    given = (("alpha", alpha, 1.0), ("beta", beta, 1.0), ("gamma", gamma, 0.0))
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    kept = _keeps(x)
    found = []
    for name, value, default in given:
        value = default if value is None else value
        plain = kept and isinstance(value, (int, float))
        found.append(_kept(value, dtype, 1) if plain else _coefficient(name, value, x, dtype))
    return found


def _coefficient(name: str, value: float | Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    known = isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"
    if known and not value.requires_grad and x.device.type != "cpu" and not torch.compiler.is_compiling():
        value = value.item()  # a copy of the tensor to the device would be waited for
    if not isinstance(value, Tensor):
        return x.new_full((1,), value, dtype=dtype)
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


def _keeps(like: Tensor) -> bool:
    """Whether constants beside this tensor can be the same ones at every call."""
    plain = like.is_cpu and type(like) in (Tensor, torch.nn.Parameter)
    return plain and not torch.compiler.is_compiling() and is_eager()


@functools.lru_cache(64)
def _kept(value: float, dtype: torch.dtype, size: int) -> Tensor:
    """A number ``size`` times, for nobody to change: small calls take little longer than making one."""
    with torch.inference_mode(False):
        return torch.full((size,), value, dtype=dtype, device="cpu")


def stages(given: Stages, features: str = "features") -> Stages:
    """The stages of Langevin dynamics, all fields lists of floats; ``features`` is their name in messages."""
    sizes = floats("step_sizes", given.step_sizes, None)
    if any(size < 0 for size in sizes):
        raise ValueError(f"step_sizes must not be negative, got {min(sizes)}")
    scales, own = given.score_scales, given.features
    scales = [1.0] * len(sizes) if scales is None else floats("score_scales", scales, len(sizes))
    own = [] if own is None else floats(features, own, len(sizes))
    at_least(0, steps=given.steps)
    return Stages(sizes, given.steps, scales, own)


def flat(stages: Stages) -> tuple[Any, Any, Any, int]:
    """The stages in the order the ops take them."""
    return stages.step_sizes, stages.score_scales, stages.features, stages.steps


def signed_seed(seed: int) -> int:
    """The seed as a signed integer of the same bits."""
    seed = operator.index(seed)  # integers of fixed width would overflow
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


def tolerance(value: float | None, x: Tensor, name: str = "tolerance") -> float:
    """The tolerance of an adaptive method, by default 1e-7 in float64 and 1e-4 otherwise."""
    if value is None:
        return 1e-7 if x.dtype is torch.float64 else 1e-4
    return positive(name, value)


def interval(given: Interval, x: Tensor, default: float | None = None) -> Interval:
    """Where the panels of a quadrature begin, and their number; ``default`` is of :func:`tolerance`."""
    low, high, largest, panels = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    if not 1 <= panels <= 16:
        raise ValueError(f"panels must be in [1, 16], got {panels}")
    return Interval(float(low), float(high), tolerance(default if largest is None else largest, x), panels)


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
