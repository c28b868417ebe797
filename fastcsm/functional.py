"""The functions a user calls on raw tensors. Arguments are checked here, once, and flattened to rows.

A score head is given as nn.Linear-shaped weights and biases with one activation between the layers; its input
is [context, x, sin(w x), cos(w x)] for fixed frequencies w (possibly none). Everything here is differentiable
once: a second derivative raises. For higher derivatives call ``fastcsm.reference`` directly, which is plain
PyTorch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import activations
from .ops import csm_loss as _csm_loss
from .ops import langevin as _langevin
from .ops import masked_linear as _masked_linear
from .ops import score_head as _score_head

__all__ = ["csm_loss", "langevin", "masked_linear", "score_head"]

Coefficient = float | Tensor | None


class _Head(NamedTuple):
    """Checked arguments of a head, flattened to rows and contiguous, in the order the ops take them."""

    context: Tensor
    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    frequencies: Tensor
    activation: str


def score_head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score s(c, x) of a head and its derivative s' = ds/dx, in one pass.

    Args:
        context: (..., C).
        x: (...).
        weights: K + 1 matrices in nn.Linear's layout, (H_1, C + 1 + 2E), (H_2, H_1), ..., (1, H_K), K >= 1.
        biases: K + 1 vectors (H_1,), ..., (1,); None stands for zeros.
        activation: "softplus", "tanh", "silu", "gelu" (tanh form), "elu", "relu" or "sigmoid".
        frequencies: (E,), or None for no frequencies.

    Returns:
        s and s', each of the shape and dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    head = _check_head(context, x, weights, biases, frequencies, activation)
    score, derivative = _score_head.score_head(*head)
    return score.reshape(x.shape), derivative.reshape(x.shape)


def csm_loss(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    alpha: Coefficient = None,
    beta: Coefficient = None,
    gamma: Coefficient = None,
) -> Tensor:
    """Composite score matching loss, the sum over rows of alpha s^2 / 2 + beta s' + gamma s (Eq. 5).

    The loss and all gradients are computed in one pass that keeps no activation. With a coefficient that
    requires a gradient the loss is formed from :func:`score_head` instead.

    Args:
        context, x, weights, biases, activation, frequencies: as for :func:`score_head`.
        alpha, beta, gamma: numbers, or tensors that broadcast to x; 1, 1 and 0 by default.

    Returns:
        The scalar loss, in the dtype of x (float32 for 16-bit dtypes).

    Raises:
        TypeError, ValueError: as for :func:`score_head`.
    """
    head = _check_head(context, x, weights, biases, frequencies, activation)
    rows = [
        _check_coefficient("alpha", alpha, 1.0, x),
        _check_coefficient("beta", beta, 1.0, x),
        _check_coefficient("gamma", gamma, 0.0, x),
    ]
    if any(row.requires_grad for row in rows) and torch.is_grad_enabled():
        a, b, g = rows
        s, ds = (output.to(a.dtype) for output in _score_head.score_head(*head))
        return (a * s * s / 2 + b * ds + g * s).sum()
    return _csm_loss.csm_loss(*head, *rows)


def langevin(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    step_sizes: Sequence[float],
    steps: int,
    score_scales: Sequence[float] | None = None,
    stage_features: Sequence[float] | None = None,
    seed: int = 0,
    samples: Tensor | None = None,
    dimensions: Tensor | None = None,
    first_step: int = 1,
) -> Tensor:
    """Annealed Langevin dynamics of one-dimensional rows with fixed context; not differentiable.

    For every stage i, ``steps`` times: x <- x + (e_i / 2) score_scales[i] s(c, x) + sqrt(e_i) z, where z of
    global step k is ``fastcsm.random.normal(seed, samples, dimensions, k)``.

    Args:
        context: (..., C), or (..., C - 1) when ``stage_features`` are given.
        x: (...), the states at the start.
        weights, biases, activation, frequencies: as for :func:`score_head`.
        step_sizes: e_i >= 0, one a stage.
        steps: Langevin steps a stage.
        score_scales: factors of the head's output, one a stage; 1 by default.
        stage_features: one value a stage, the last context feature of every row during that stage.
        seed: integer in [0, 2^64).
        samples, dimensions: integer tensors of the shape of x that identify each row's noise; by default
            rows are samples 0, 1, ... of dimension 0. In [0, 2^48) and [0, 2^32).
        first_step: global number k of the first step; 0 is the prior draw.

    Returns:
        The states after the last step, of the shape and dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    step_sizes = _check_floats("step_sizes", step_sizes, None)
    stages = len(step_sizes)
    if any(size < 0 for size in step_sizes):
        raise ValueError(f"step_sizes must not be negative, got {min(step_sizes)}")
    score_scales = [1.0] * stages if score_scales is None else score_scales
    score_scales = _check_floats("score_scales", score_scales, stages)
    features = [] if stage_features is None else _check_floats("stage_features", stage_features, stages)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    if not 0 <= first_step < 2**32:
        raise ValueError(f"first_step must be in [0, 2^32), got {first_step}")
    head = _check_head(context, x, weights, biases, frequencies, activation, missing=min(len(features), 1))
    if samples is None:
        samples = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if dimensions is None:
        dimensions = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    result = _langevin.langevin(
        *head,
        step_sizes,
        score_scales,
        features,
        steps,
        seed - 2**64 if seed >= 2**63 else seed,
        _check_integers("samples", samples, x),
        _check_integers("dimensions", dimensions, x),
        first_step,
    )
    return result.reshape(x.shape)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    *,
    activation: str | None = None,
) -> Tensor:
    """f((W * M) x + b), with an edge from input i to output o iff in_degrees[i] <= out_degrees[o] (MADE).

    The gradient of the weight is exactly zero where there is no edge.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,), or None for zeros.
        in_degrees, out_degrees: (I,) and (O,) int64, in any order.
        activation: a name as for :func:`score_head`, or None for the identity.

    Returns:
        (..., O), in the dtype of x.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    _check_floating("x", x)
    if activation is not None:
        activations.get(activation)
    _check_like("weight", weight, x, 2)
    outputs, inputs = weight.shape
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(f"x must have shape (..., {inputs}) to match weight, got {tuple(x.shape)}")
    bias = weight.new_zeros(outputs) if bias is None else bias
    _check_like("bias", bias, x, 1)
    _check_shape("bias", bias, (outputs,))
    for name, degrees, size in (("in_degrees", in_degrees, inputs), ("out_degrees", out_degrees, outputs)):
        if degrees.dtype is not torch.int64 or degrees.device != x.device:
            raise TypeError(f"{name} must be int64 on {x.device}, got {degrees.dtype} on {degrees.device}")
        _check_shape(name, degrees, (size,))
    rows = x.reshape(x.shape[:-1].numel(), inputs).contiguous()
    y = _masked_linear.masked_linear(
        rows,
        weight.contiguous(),
        bias.contiguous(),
        in_degrees.contiguous(),
        out_degrees.contiguous(),
        activation or "identity",
    )
    return y.reshape(*x.shape[:-1], outputs)


def _check_head(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    frequencies: Tensor | None,
    activation: str,
    missing: int = 0,
) -> _Head:
    """``missing`` context features are supplied by the op itself."""
    _check_floating("context", context)
    _check_like("x", x, context, None)
    if context.dim() != x.dim() + 1 or context.shape[:-1] != x.shape:
        raise ValueError(
            f"x must have the shape of context without its last axis, {tuple(context.shape[:-1])},"
            f" got {tuple(x.shape)}"
        )
    activations.get(activation)
    if frequencies is None:
        frequencies = x.new_empty(0)
    _check_like("frequencies", frequencies, context, 1)
    if len(weights) < 2:
        raise ValueError(f"weights must hold at least 2 matrices (one hidden layer), got {len(weights)}")
    if len(biases) != len(weights):
        raise ValueError(
            f"biases must hold one entry for each of the {len(weights)} weights, got {len(biases)}"
        )
    features, c = context.shape[-1] + missing + 1 + 2 * frequencies.shape[0], context.shape[-1]
    full = []
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _check_like(f"weights[{k}]", weight, context, 2)
        outputs = 1 if k == len(weights) - 1 else weight.shape[0]
        _check_shape(f"weights[{k}]", weight, (outputs, features))
        bias = weight.new_zeros(outputs) if bias is None else bias
        _check_like(f"biases[{k}]", bias, context, 1)
        _check_shape(f"biases[{k}]", bias, (outputs,))
        full.append(bias.contiguous())
        features = outputs
    return _Head(
        context.reshape(x.numel(), c).contiguous(),
        x.reshape(-1).contiguous(),
        [weight.contiguous() for weight in weights],
        full,
        frequencies.contiguous(),
        activation,
    )


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {value.dtype}")


def _check_like(name: str, value: Tensor, other: Tensor, dim: int | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype is not other.dtype or value.device != other.device:
        raise TypeError(
            f"{name} must be {other.dtype} on {other.device} like the first argument,"
            f" got {value.dtype} on {value.device}"
        )
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} axes, got shape {tuple(value.shape)}")


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def _check_coefficient(name: str, value: Coefficient, default: float, x: Tensor) -> Tensor:
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    if value is None:
        value = default
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


def _check_floats(name: str, values: Sequence[float], length: int | None) -> list[float]:
    values = [float(value) for value in values]
    if length is not None and len(values) != length:
        raise ValueError(f"{name} must have one entry for each of the {length} step_sizes, got {len(values)}")
    return values


def _check_integers(name: str, value: Tensor, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.device != x.device:
        got = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an integer tensor on {x.device}, got {got}")
    _check_shape(name, value, tuple(x.shape))
    return value.reshape(-1).to(torch.int64).contiguous()
