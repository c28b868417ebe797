"""Losses of a score head on variables given their contexts: composite score matching, denoising."""

import math
from typing import Any

import torch
from torch import Tensor

from ..functional.arguments import one_of
from ..networks import heads
from ..networks.any_head import Coefficients, Rows
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
    weight = _weight(row_weight, x, reduction)
    rows = _rows(head, context, x, score_scale)
    value = _reduce(rows, _coefficients(rows, weight, rows.shift, True), reduction)
    if not isinstance(rows.shift, Tensor):
        return value
    return value + _summed(weight * (rows.shift.square() / 2 + rows.shift_slope), reduction)


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
    weight = _weight(row_weight, x_noisy, reduction)
    if not isinstance(noise, Tensor) or noise.shape != x_noisy.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a tensor of the shape of x_noisy, {tuple(x_noisy.shape)}, got {got}")
    _check_broadcast("sigma", sigma, x_noisy)
    rows = _rows(head, context, x_noisy, score_scale)
    off = noise / sigma
    off = off + rows.shift if isinstance(rows.shift, Tensor) else off
    value = _reduce(rows, _coefficients(rows, weight, off, False), reduction)
    return value + _summed(weight * off * off / 2, reduction)


def moments_loss(y: Tensor, log_scale: Tensor) -> Tensor:
    """-ln of Student's density, 4 degrees of freedom, but for a constant: the fit of centres and scales.

    Args:
        y: (B, D), (x - m) / tau.
        log_scale: (B, D), ln(tau).

    Returns:
        The mean over samples of the sum over dimensions, at least float32.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    rows = log_scale.to(wide) + 2.5 * torch.log1p(y.to(wide).square() / 4)
    return rows.sum() / max(len(y), 1)


def _weight(row_weight: float | Tensor | None, x: Tensor, reduction: str) -> float | Tensor:
    """The weight of each row in the reduced loss."""
    one_of("reduction", reduction, ("mean", "sum", "none"))
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise ValueError("x must be a tensor with at least one axis, the last being the dimension axis")
    weight = 1.0 if row_weight is None else row_weight
    _check_broadcast("row_weight", weight, x)
    return weight / max(math.prod(x.shape[:-1]), 1) if reduction == "mean" else weight


def _rows(head: Any, context: Any, x: Tensor, score_scale: float | Tensor | None) -> Rows:
    """The rows' scores, times a factor where there is one."""
    rows = heads.of(head).rows(context, x)
    if score_scale is None:
        return rows
    _check_broadcast("score_scale", score_scale, x)
    scaled = [score_scale * value if isinstance(value, Tensor) else value for value in rows[4:]]
    scale, shift, shift_slope = scaled
    if not isinstance(scale, Tensor):
        scale = score_scale if scale == 1 else score_scale * scale
    return rows._replace(scale=scale, shift=shift, shift_slope=shift_slope)


def _coefficients(rows: Rows, weight: float | Tensor, off: float | Tensor, csm: bool) -> Coefficients:
    """Of weight (scale r + off)^2 / 2, and where ``csm`` + weight s', but for what has no r.

    ``off`` is 0 where it is no tensor, and so is what the slope adds to 1.
    """
    scale, slope = rows.scale, rows.slope
    plain = not isinstance(scale, Tensor) and scale == 1  # nothing is multiplied by 1
    scaled = weight if plain else weight * scale
    beta = scaled * slope if isinstance(slope, Tensor) else scaled
    gamma = scaled * off if isinstance(off, Tensor) else 0.0
    return (scaled if plain else scaled * scale), (beta if csm else 0.0), gamma


def _check_broadcast(name: str, value: float | Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        return
    sizes = list(zip(reversed(value.shape), reversed(x.shape)))
    if value.dim() > x.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{name} must broadcast to the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
        )


def _reduce(rows: Rows, coefficients: Coefficients, reduction: str) -> Tensor:
    if reduction == "none":
        return rows.head.loss_of_rows(rows.context, rows.u, coefficients).sum(-1)
    return rows.head.csm_loss(rows.context, rows.u, coefficients)


def _summed(constant: Tensor, reduction: str) -> Tensor:
    return constant.sum(-1) if reduction == "none" else constant.sum()
