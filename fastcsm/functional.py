"""The functions a user calls on raw tensors. Arguments are checked once, by ``arguments``, and flattened.

A score head is given as nn.Linear-shaped weights and biases with one activation between the layers; its input
is [context, x, sin(w x), cos(w x)] for fixed frequencies w (possibly none). Everything here is differentiable
once: a second derivative raises. For higher derivatives call ``fastcsm.reference`` directly, which is plain
PyTorch.

Under torch.autocast, score_head, csm_loss, linear_csm_loss and masked_linear take their tensors in autocast's
dtype, like torch.nn.functional.linear (losses are float32 nevertheless); langevin, conditional_density and
probability_flow take them in float32. Tensors of float64 are left alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import activations, arguments
from .arguments import Coefficient
from .draws import conditional_density_draw, langevin_draw
from .ops import conditional_density as _conditional_density
from .ops import csm_loss as _csm_loss
from .ops import langevin as _langevin
from .ops import linear_csm_loss as _linear_csm_loss
from .ops import masked_linear as _masked_linear
from .ops import probability_flow as _probability_flow
from .ops import score_head as _score_head
from .ops.library import needs_grad
from .reference.quadrature import Density

__all__ = [
    "Density",
    "Flow",
    "conditional_density",
    "conditional_density_draw",
    "csm_loss",
    "langevin",
    "langevin_draw",
    "linear_csm_loss",
    "masked_linear",
    "probability_flow",
    "score",
    "score_head",
]


class Flow(NamedTuple):
    """Results of :func:`probability_flow`, each of the shape of x."""

    point: Tensor
    change: Tensor
    error: Tensor


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
    context, x, weights, biases, frequencies = arguments.autocast(context, x, weights, biases, frequencies)
    head = arguments.head(context, x, weights, biases, frequencies, activation)
    score, derivative = _score_head.score_head(*head)
    return score.reshape(x.shape), derivative.reshape(x.shape)


def score(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
) -> Tensor:
    """The score alone, at half the operations of :func:`score_head`, whose arguments it takes.

    Returns:
        s, of the shape and dtype of x.
    """
    context, x, weights, biases, frequencies = arguments.autocast(context, x, weights, biases, frequencies)
    head = arguments.head(context, x, weights, biases, frequencies, activation)
    return _score_head.score_head(*head, derivative=False)[0].reshape(x.shape)


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
    requires a gradient the loss is formed from :func:`score_head` instead. On processors, tiles of rows whose
    beta is 0, as in denoising score matching, cost half the operations.

    Args:
        context, x, weights, biases, activation, frequencies: as for :func:`score_head`.
        alpha, beta, gamma: numbers, or tensors that broadcast to x; 1, 1 and 0 by default.

    Returns:
        The scalar loss, in the dtype of x (float32 for 16-bit dtypes).

    Raises:
        TypeError, ValueError: as for :func:`score_head`.
    """
    context, x, weights, biases, frequencies = arguments.autocast(context, x, weights, biases, frequencies)
    head = arguments.head(context, x, weights, biases, frequencies, activation)
    coefficients = arguments.coefficients(alpha, beta, gamma, x)
    if needs_grad(*coefficients):
        a, b, g = coefficients
        s, ds = (output.to(a.dtype) for output in _score_head.score_head(*head))
        return (a * s * s / 2 + b * ds + g * s).sum()
    return _csm_loss.csm_loss(*head, *coefficients)


def linear_csm_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    extra: Tensor | None = None,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    alpha: Coefficient = None,
    beta: Coefficient = None,
    gamma: Coefficient = None,
) -> Tensor:
    """:func:`csm_loss` of contexts that a masked linear layer computes, block of dimensions by block.

    The context of dimension d is [rows d C ... (d + 1) C of (W * M) h + b, extra_d]. It is computed and used
    up in blocks of 4 MiB on a processor, of 256 MiB elsewhere, and so is its gradient.

    Args:
        hidden: (..., H), the input h of the masked layer.
        weight: (D * C, H).
        bias: (D * C,), or None for zeros.
        in_degrees, out_degrees: (H,) and (D * C,) int64, as for :func:`masked_linear`.
        x: (..., D).
        weights, biases, activation, frequencies: as for :func:`score_head`, with C + X context features.
        extra: (..., D, X), further context features, or None for X = 0.
        alpha, beta, gamma: as for :func:`csm_loss`. If one of them or ``extra`` requires a gradient, the
            context is formed as a whole.

    Returns:
        The scalar loss, in the dtype of x (float32 for 16-bit dtypes).

    Raises:
        TypeError, ValueError: as for :func:`masked_linear` and :func:`score_head`.
    """
    hidden, weight, bias, x, extra = arguments.autocast(hidden, weight, bias, x, extra)
    weights, biases, frequencies = arguments.autocast(hidden, weights, biases, frequencies)[1:]
    layer = arguments.masked("hidden", hidden, weight, bias, in_degrees, out_degrees)
    arguments.like("x", x, hidden, None)
    if x.dim() == 0 or x.shape[:-1] != hidden.shape[:-1] or x.shape[-1] == 0:
        raise ValueError(
            f"x must have shape (..., D) with D >= 1 and the leading axes of hidden, {tuple(hidden.shape)},"
            f" got {tuple(x.shape)}"
        )
    features = weight.shape[0] // x.shape[-1]
    if features == 0 or weight.shape[0] != features * x.shape[-1]:
        raise ValueError(
            f"weight must have D * C rows, a positive multiple of x's {x.shape[-1]} dimensions,"
            f" got {weight.shape[0]}"
        )
    extra = x.new_empty(*x.shape, 0) if extra is None else extra
    arguments.like("extra", extra, hidden, x.dim() + 1)
    arguments.shape("extra", extra, (*x.shape, extra.shape[-1]))
    features_in_all = features + extra.shape[-1]
    head = arguments.layers(hidden, features_in_all, weights, biases, frequencies, activation)
    coefficients = arguments.coefficients(alpha, beta, gamma, x)
    if needs_grad(*coefficients, extra):
        y = masked_linear(hidden, weight, bias, in_degrees, out_degrees).unflatten(-1, (-1, features))
        return csm_loss(
            torch.cat([y, extra], -1),
            x,
            weights,
            biases,
            activation=activation,
            frequencies=frequencies,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
        )
    extra = extra.reshape(x.numel(), extra.shape[-1]).contiguous()
    return _linear_csm_loss.linear_csm_loss(layer, extra, x.reshape(-1).contiguous(), head, coefficients)


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
    stages = arguments.stages(step_sizes, score_scales, stage_features, steps, seed)
    if not 0 <= first_step < 2**32:
        raise ValueError(f"first_step must be in [0, 2^32), got {first_step}")
    context, x, weights, biases, frequencies = arguments.autocast(
        context, x, weights, biases, frequencies, wide=True
    )
    head = arguments.head(context, x, weights, biases, frequencies, activation, min(len(stages.features), 1))
    if samples is None:
        samples = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if dimensions is None:
        dimensions = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    result = _langevin.langevin(
        *head,
        *stages,
        arguments.integers("samples", samples, x),
        arguments.integers("dimensions", dimensions, x),
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
    if activation is not None:
        activations.get(activation)
    x, weight, bias = arguments.autocast(x, weight, bias)
    layer = arguments.masked("x", x, weight, bias, in_degrees, out_degrees)
    y = _masked_linear.masked_linear(*layer, activation or "identity")
    return y.reshape(*x.shape[:-1], weight.shape[0])


def conditional_density(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    low: float,
    high: float,
    score_scale: float = 1.0,
    stage_feature: float | None = None,
    tolerance: float | None = None,
    panels: int = 4,
    inverse: bool = False,
) -> Density:
    """The normalised density q of every row that has a head's score: d log q / dx = score_scale s(c, x).

    The score is integrated by Gauss-Legendre panels, split where an error matters to the row's answer and
    added beyond both ends until the mass there does not. ``log_density`` is differentiable once, in context,
    x, weights and biases; the other results are not.

    Args:
        context: (..., C), without the last feature where ``stage_feature`` gives it.
        x: (...); where ``inverse``, probabilities in [0, 1].
        weights, biases, activation, frequencies: as for :func:`score_head`.
        low, high: an interval that holds most of the mass; the panels begin there.
        score_scale: factor of the head's output.
        stage_feature: last context feature, the same for all rows (log sigma in the conditional form).
        tolerance: largest estimated error of log q in nats, or of the probability where ``inverse``; by
            default 1e-7 in float64 and 1e-4 otherwise.
        panels: number to begin with, of 16 evaluations each, 1 to 16.
        inverse: find the quantile of x.

    Returns:
        :class:`Density`: ``point`` (x or the quantile), ``log_density`` log q(point) in nats,
        ``log_normalizer`` log of the integral of exp(L), L the integral of the score from ``low``, ``cdf``
        P(X <= point), ``error`` the estimated error, and ``ends`` the probabilities left and right of all
        panels; of the dtype of x, float32 for 16-bit dtypes. Where the density does not exist (the score does
        not point back at the ends, however far out) the row is NaN and its error inf. An error above the
        tolerance means that 64 panels, or rounding, do not allow a better one.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    supplied = int(stage_feature is not None)
    context, x, weights, biases, frequencies = arguments.autocast(
        context, x, weights, biases, frequencies, wide=True
    )
    head = arguments.head(context, x, weights, biases, frequencies, activation, supplied)
    low, high, panels = arguments.interval(low, high, panels)
    options = low, high, arguments.tolerance(tolerance, x), panels
    features = [] if stage_feature is None else [float(stage_feature)]
    found = _conditional_density.conditional_density(*head, float(score_scale), features, *options, inverse)
    return Density._make([*(value.reshape(x.shape) for value in found[:-1]), found[-1].reshape(*x.shape, 2)])


def probability_flow(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    activation: str = "silu",
    frequencies: Tensor | None = None,
    sigma_from: float,
    sigma_to: float,
    tolerance: float | None = None,
    change: bool = True,
) -> Flow:
    """Carry x between noise levels along the probability flow dx / d ln(sigma) = -sigma^2 s(c, x, sigma).

    The head is conditional: log sigma is its last context feature and its output is sigma s. Every row takes
    steps of its own, of order 5 with an error estimate. Products of float32 are in full float32, whatever
    ``torch.set_float32_matmul_precision`` says. Not differentiable.

    Args:
        context: (..., C), without log sigma.
        x: (...).
        weights, biases, activation, frequencies: as for :func:`score_head`, with C + 1 context features.
        sigma_from, sigma_to: positive noise levels; the flow back is the flow with the two exchanged.
        tolerance: largest estimated error of a step, in x as a part of sigma and in log p; by default 1e-7 in
            float64 and 1e-4 otherwise.
        change: follow log p too; False costs half.

    Returns:
        :class:`Flow`: ``point``; ``change``, log p_to(point) - log p_from(x) in nats, by the exact derivative
        of the score; and ``error``, the sum over steps of the estimated errors; of the dtype of x, float32
        for 16-bit dtypes. A row that needs more than 500 steps is NaN, its error inf.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device, shape or range.
    """
    context, x, weights, biases, frequencies = arguments.autocast(
        context, x, weights, biases, frequencies, wide=True
    )
    head = arguments.head(context, x, weights, biases, frequencies, activation, 1)
    for name, value in (("sigma_from", sigma_from), ("sigma_to", sigma_to)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")
    tolerance = arguments.tolerance(tolerance, x)
    found = _probability_flow.probability_flow(
        *head, float(sigma_from), float(sigma_to), tolerance, bool(change)
    )
    return Flow._make(value.reshape(x.shape) for value in found)
