"""Held-out losses of a trained model at given noise levels, its likelihood, and its anomaly scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import losses
from .density import LogDensity
from .nn import ARCSM

Progress = Callable[[int, int], None]
#: Rows (sample, dimension) of a density evaluated together.
_DENSITY_ROWS = 4096
#: Points a side of the grid of a two-dimensional density.
GRID_POINTS = 120


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


@torch.no_grad()
def log_densities(
    model: ARCSM,
    x: Tensor,
    method: str | None = None,
    *,
    base: float | None = None,
    progress: Progress | None = None,
) -> LogDensity:
    """``model.log_density(x, method)`` of x (N, D), a part of the samples at a time.

    Args:
        model: in evaluation mode.
        x: in model space, on the model's device and in its dtype.
        method, base: as for :meth:`fastcsm.nn.ARCSM.log_density`.
        progress: called with (samples done, samples in all).
    """
    size = max(1, _DENSITY_ROWS // x.shape[1])
    parts = []
    for part in x.split(size):
        parts.append(model.log_density(part, method, base=base))
        if progress:
            progress(min(size * len(parts), len(x)), len(x))
    return LogDensity(*(torch.cat(values) for values in zip(*parts, strict=True)))


def likelihood(
    model: ARCSM,
    x: Tensor,
    method: str | None = None,
    *,
    grey_levels: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Negative log-likelihood of held-out samples x (N, D), in nats and, of grey values, in bits.

    Args:
        model: in evaluation mode.
        x: in model space, on the model's device and in its dtype.
        method: "flow" or "quadrature", as for :meth:`fastcsm.nn.ARCSM.log_density`.
        grey_levels: number of levels of dequantised images, for bits per dimension; 0 for other data.
        progress: called with (samples done, samples in all).

    Returns:
        Dictionary: ``nats`` and ``nats_per_dimension`` (and ``bits_per_dimension`` where there are grey
        levels), each the mean and standard_error over samples whose density exists, or None where it exists
        for none; ``error``, the mean and the largest estimated error of a sample's log-likelihood in nats;
        ``ends``, the largest probability outside an interval of integration; ``samples``; ``diverged``, the
        number of samples of which a conditional has no density, which the means leave out.
    """
    found = log_densities(model, x, method, progress=progress)
    nats, features = -found.log_density.double().sum(1), x.shape[1]
    exists = nats.isfinite()
    nats, error = nats[exists], found.error[exists].double().sum(1)
    result: dict[str, Any] = {"nats": None, "nats_per_dimension": None, "error": None, "ends": None}
    if len(nats):
        result["nats"] = _summary([nats], 1)
        result["nats_per_dimension"] = _summary([nats], features)
        if grey_levels:
            bits = (nats / features + math.log(grey_levels / 2)) / math.log(2)
            result["bits_per_dimension"] = _summary([bits], 1)
        result["error"] = {"mean": error.mean().item(), "largest": error.max().item()}
        result["ends"] = found.ends[exists].max().item()
    return result | {"samples": len(x), "diverged": int((~exists).sum())}


class Grid(NamedTuple):
    """A density (rows of y, columns of x) at the points of a regular grid, and its corner points (2,)."""

    density: Tensor
    low: Tensor
    high: Tensor


def density_grid(model: ARCSM, x: Tensor, method: str | None = None) -> Grid:
    """The density of a two-dimensional model around samples x (N, 2); 0 where it does not exist.

    Arguments as for :func:`likelihood`.
    """
    points = GRID_POINTS
    low, high = (x.quantile(q, dim=0) for q in (0.002, 0.998))
    margin = 0.15 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    lines = [torch.linspace(float(a), float(b), points).to(x) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(lines[1], lines[0]).flip(1)
    found = log_densities(model, grid, method).log_density.sum(1).exp().nan_to_num(nan=0.0)
    return Grid(found.reshape(points, points), low, high)


@torch.no_grad()
def anomaly_scores(
    model: ARCSM, x: Tensor, method: str | None = None, *, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Two statistics of samples x (N, D), lower for stranger samples: h = sum_d s_d (paper, section 5.5) and
    log q, each (N,), under the keys "score_sum" and "log_likelihood". Arguments as for :func:`likelihood`.

    log q is NaN where it does not exist.
    """
    sums = torch.cat([model.score(part).sum(1) for part in x.split(256)])
    return {
        "score_sum": sums,
        "log_likelihood": log_densities(model, x, method, progress=progress).log_density.sum(1),
    }


def auroc(usual: Tensor, strange: Tensor) -> float:
    """Area under the receiver operating curve: P(usual > strange) + P(usual = strange) / 2.

    Args:
        usual, strange: a statistic of the two kinds of samples, (N,) and (M,), without NaN.
    """
    values = torch.cat([usual, strange]).double()
    _, inverse, count = values.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0).double() - (count - 1) / 2)[inverse]
    n, m = len(usual), len(strange)
    return ((rank[:n].sum() - n * (n + 1) / 2) / (n * m)).item() if n and m else math.nan
