"""Held-out losses of a trained model at given noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import objectives
from ..models.model import Model, in_dtype_of
from ..networks.heads import Part


@torch.no_grad()
def evaluate(
    model: Model, x: Tensor, *, sigmas: Sequence[float] | None = None, seed: int = 0, batch_size: int = 256
) -> list[dict[str, Any]]:
    """Composite score matching and denoising losses per dimension, each weighted by sigma^2.

    At noise level sigma the head reads x + sigma z and the context network x + sigma_L z'. With s the score,
    csm = sigma^2 (s^2 / 2 + s') and denoising = (sigma s + z)^2 / 2; the two differ by 1/2 in expectation.
    The same z serve every level. A model without noise has the one level sigma = 0 and csm = s^2 / 2 + s'.

    Args:
        model: in evaluation mode.
        x: held-out data in model space (N, D), on the model's device.
        sigmas: noise levels; the model's own levels by default, and only these where its heads do not read
            the level.
        seed: of the noise.
        batch_size: rows at a time.

    Returns:
        One dictionary per level: sigma, and mean and standard error over samples of csm and denoising
        (denoising is None for a model without noise). None for a model that is no score model.

    Raises:
        ValueError: a level is not positive, or not one of the model's where it must be.
    """
    levels, x = _levels(model.parts(), sigmas), in_dtype_of(model, x)
    generator = torch.Generator().manual_seed(seed)
    values: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in levels]
    for rows in x.split(batch_size):
        z_hat, z = (_normal(rows.shape, generator).to(rows) for _ in range(2))
        read: nn.Module | None = None
        for (sigma, part), (csm, denoising) in zip(levels, values, strict=True):
            net, head = part.context_net, part.head.at(sigma)
            if net is not read:  # one network's contexts at a time
                read, found = net, net(rows + model.sigma_min * z_hat)
            own = part.head.own(found, rows.shape[1])
            context, y = own.context, own.of(rows)
            if not sigma:
                csm.append(objectives.csm_loss(head, context, y, reduction="none"))
                continue
            noisy = y + sigma * z
            options: dict[str, Any] = {"row_weight": sigma**2, "reduction": "none"}
            csm.append(objectives.csm_loss(head, context, noisy, **options))
            denoising.append(objectives.denoising_loss(head, context, noisy, z, sigma, **options))
    return [
        {"sigma": sigma, "csm": summary(csm, x.shape[1]), "denoising": summary(denoising, x.shape[1])}
        for (sigma, _), (csm, denoising) in zip(levels, values, strict=True)
    ]


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The same numbers whatever the defaults of torch are."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)


def _levels(parts: Sequence[Part], sigmas: Sequence[float] | None) -> list[tuple[float, Part]]:
    """Every level with the part that serves it; level 0 of a model without noise."""
    own = [(sigma, part) for part in parts for sigma in part.sigmas]
    if not parts and sigmas:
        raise ValueError("sigmas is given, expected none for an average, or a model that is no score model")
    if parts and not own:
        if sigmas:
            raise ValueError("sigmas is given, expected none for a model without noise")
        return [(0.0, parts[-1])]
    if not sigmas:
        return own
    if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(f"sigmas is {list(sigmas)}, expected positive numbers")
    if parts[-1].head.reads_level:
        return [(sigma, parts[-1]) for sigma in sigmas]
    nearest = [min(own, key=lambda pair, s=sigma: abs(pair[0] - s)) for sigma in sigmas]  # type: ignore[misc]
    if not all(math.isclose(a, b, rel_tol=1e-3) for (a, _), b in zip(nearest, sigmas, strict=True)):
        text = ", ".join(f"{level:.4g}" for level, _ in own)
        raise ValueError(f"sigmas is {list(sigmas)}, expected among the model's trained levels: {text}")
    return nearest


def summary(values: list[Tensor], features: int) -> dict[str, float] | None:
    """Mean and standard error over samples of values that sum over features; None of no values."""
    if not sum(map(len, values)):
        return None
    samples = torch.cat(values).double() / features
    error = samples.std().item() / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return {"mean": samples.mean().item(), "standard_error": error}
