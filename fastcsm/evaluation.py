"""Held-out losses of a trained model at given noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import losses
from .nn import ARCSM


@torch.no_grad()
def evaluate(
    model: ARCSM, x: Tensor, *, sigmas: Sequence[float] | None = None, seed: int = 0, batch_size: int = 256
) -> list[dict[str, Any]]:
    """Composite score matching and denoising losses per dimension, each weighted by sigma^2.

    At noise level sigma the head reads x + sigma z and the context network x + sigma_L z'. With s the score,
    csm = sigma^2 (s^2 / 2 + s') and denoising = (sigma s + z)^2 / 2; the two differ by 1/2 in expectation.
    The same z serve every level. A model without noise has the one level sigma = 0 and csm = s^2 / 2 + s'.

    Args:
        model: in evaluation mode.
        x: held-out data in model space (N, D), on the model's device and in its dtype.
        sigmas: noise levels; the model's own levels by default. The staged form takes its own levels only.
        seed: of the noise.
        batch_size: rows at a time.

    Returns:
        One dictionary per level: sigma, and mean and standard error over samples of csm and denoising
        (denoising is None for a model without noise).

    Raises:
        ValueError: a level is not positive, or not one of a staged model's.
    """
    levels = _levels(model, sigmas)
    generator = torch.Generator().manual_seed(seed)
    values: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in levels]
    for rows in x.split(batch_size):
        z_hat, z = (torch.randn(rows.shape, generator=generator).to(rows) for _ in range(2))
        last = model.noise.sigma_min if model.noise else 0.0
        shared: Any = None if model.staged else model.context_net(rows + last * z_hat)
        for index, sigma in enumerate(levels):
            csm, denoising = values[index]
            if not sigma:
                csm.append(losses.csm_loss(model.head, shared, rows, reduction="none"))
                continue
            head, context, scale = model.head, shared, 1.0
            if model.staged:
                net, head = _stage(model, model.noise.sigmas.index(sigma))
                context = net(rows + last * z_hat)
            else:
                level = context.new_full((*context.shape[:-1], 1), math.log(sigma))
                context, scale = torch.cat([context, level], -1), 1 / sigma
            noisy = rows + sigma * z
            options: dict[str, Any] = {"row_weight": sigma**2, "score_scale": scale, "reduction": "none"}
            csm.append(losses.csm_loss(head, context, noisy, **options))
            denoising.append(losses.denoising_loss(head, context, noisy, z, sigma, **options))
    return [
        {"sigma": sigma, "csm": _summary(csm, x.shape[1]), "denoising": _summary(denoising, x.shape[1])}
        for sigma, (csm, denoising) in zip(levels, values, strict=True)
    ]


def _levels(model: ARCSM, sigmas: Sequence[float] | None) -> list[float]:
    if model.noise is None:
        if sigmas:
            raise ValueError("sigmas is given, expected none for a model without noise")
        return [0.0]
    own = list(model.noise.sigmas)
    if model.staged:
        own = own[: model.stage + 1]
    if not sigmas:
        return own
    if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"sigmas is {list(sigmas)}, expected positive numbers")
    if not model.staged:
        return list(sigmas)
    nearest = [_nearest(own, sigma) for sigma in sigmas]
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(nearest, sigmas, strict=True)):
        text = ", ".join(f"{level:.4g}" for level in own)
        raise ValueError(
            f"sigmas is {list(sigmas)}, expected among the trained levels of the staged model: {text}"
        )
    return nearest


def _nearest(levels: Sequence[float], sigma: float) -> float:
    return min(levels, key=lambda level: abs(level - sigma))


def _stage(model: ARCSM, index: int) -> tuple[Any, Any]:
    if index < len(model.stages):
        stage: Any = model.stages[index]
        return stage.context_net, stage.head
    return model.context_net, model.head


def _summary(values: list[Tensor], features: int) -> dict[str, float] | None:
    if not values:
        return None
    samples = torch.cat(values).double() / features
    error = samples.std().item() / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return {"mean": samples.mean().item(), "standard_error": error}
