"""Losses of a score head on variables given their contexts: composite score matching, denoising."""

import math
from typing import Any

from torch import Tensor

from ..functional.arguments import one_of
from ..networks import heads
from ..networks.context import LinearContext


def csm_loss(
    head: Any,
    context: Tensor | LinearContext,
    x: Tensor,
    *,
    row_weight: float | Tensor | None = None,
    score_scale: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Composite score matching loss of a score head (Eq. 5): sum over dimensions of s^2 / 2 + s'.

    Args:
        head: as for :func:`fastcsm.score_and_derivative`; or what :mod:`fastcsm.networks.heads` makes of one,
            at one noise level or at one a row.
        context: (..., D, C), the context of each dimension, or a
            :class:`fastcsm.networks.context.LinearContext`.
        x: (..., D), the values at which the score is matched. A one-dimensional x is one sample.
        row_weight: weight of each row, a number or a tensor that broadcasts to x; 1 by default.
        score_scale: the score is score_scale times the head's output; a number or a tensor that broadcasts
            to x; 1 by default.
        reduction: "mean" over samples of the sum over dimensions (0 for an empty batch), "sum", or "none"
            for one value per sample, which recomputes in the backward pass.

    Returns:
        A scalar, or a tensor of shape x.shape[:-1] for "none"; differentiable once.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    head = heads.of(head)
    weight, scale = _coefficients(row_weight, head, score_scale, x, reduction)
    return _reduce(head, context, x, (weight * scale * scale, weight * scale, 0.0), reduction)


def csm_loss_of_noisy(
    head: Any, context: Tensor | LinearContext, x_noisy: Tensor, noise: Tensor, sigma: Tensor, **options: Any
) -> Tensor:
    """:func:`csm_loss` of x_noisy, which needs neither the noise nor its level."""
    return csm_loss(head, context, x_noisy, **options)


def denoising_loss(
    head: Any,
    context: Tensor | LinearContext,
    x_noisy: Tensor,
    noise: Tensor,
    sigma: float | Tensor,
    *,
    row_weight: float | Tensor | None = None,
    score_scale: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Conditional denoising loss of a score head: sum over dimensions of (s + noise / sigma)^2 / 2.

    Its optimum is that of :func:`csm_loss` at the same noise level, with less variance.

    Args:
        head, context: as for :func:`csm_loss`.
        x_noisy: (..., D), x + sigma * noise.
        noise: (..., D), standard normal.
        sigma: noise level > 0, a number or a tensor that broadcasts to x_noisy.
        row_weight, score_scale, reduction: as for :func:`csm_loss`.

    Returns:
        As for :func:`csm_loss`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    head = heads.of(head)
    weight, scale = _coefficients(row_weight, head, score_scale, x_noisy, reduction)
    if not isinstance(noise, Tensor) or noise.shape != x_noisy.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a tensor of the shape of x_noisy, {tuple(x_noisy.shape)}, got {got}")
    _check_broadcast("sigma", sigma, x_noisy)
    target = noise / sigma
    coefficients = weight * scale * scale, 0.0, weight * scale * target
    value = _reduce(head, context, x_noisy, coefficients, reduction)
    constant = weight * target * target / 2
    return value + (constant.sum(-1) if reduction == "none" else constant.sum())


def _coefficients(
    row_weight: float | Tensor | None,
    head: Any,
    score_scale: float | Tensor | None,
    x: Tensor,
    reduction: str,
) -> tuple[float | Tensor, float | Tensor]:
    """The weight of each row in the reduced loss, and the factor of the head's output."""
    one_of("reduction", reduction, ("mean", "sum", "none"))
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise ValueError("x must be a tensor with at least one axis, the last being the dimension axis")
    weight = 1.0 if row_weight is None else row_weight
    scale = head.scale if score_scale is None else score_scale * head.scale
    _check_broadcast("row_weight", weight, x)
    _check_broadcast("score_scale", scale, x)
    return weight / max(math.prod(x.shape[:-1]), 1) if reduction == "mean" else weight, scale


def _check_broadcast(name: str, value: float | Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        return
    sizes = list(zip(reversed(value.shape), reversed(x.shape)))
    if value.dim() > x.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{name} must broadcast to the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
        )


def _reduce(
    head: Any, context: Tensor | LinearContext, x: Tensor, coefficients: heads.Coefficients, reduction: str
) -> Tensor:
    if reduction == "none":
        return head.loss_of_rows(context, x, coefficients).sum(-1)
    return head.csm_loss(context, x, coefficients)
