"""The likelihood of a trained model on held-out samples, and the density of a two-dimensional one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import Transform
from ..densities import LogDensity
from ..models.model import Model
from .losses import summary

Progress = Callable[[int, int], None]
#: Rows (sample, dimension) of a density evaluated together: a second or two, after which progress is told and
#: Ctrl-C heard.
_DENSITY_ROWS = 1024
#: Points a side of the grid of a two-dimensional density.
GRID_POINTS = 64
#: Rows from which its corners are found: quantiles of many more do not exist.
_QUANTILE_ROWS = 1 << 20


@torch.no_grad()
def log_densities(
    model: Model, x: Tensor, method: str | None = None, *, progress: Progress | None = None, **options: Any
) -> LogDensity:
    """``model.log_density(x, method, **options)`` of x (N, D), a part of the samples at a time.

    Args:
        model: in evaluation mode.
        x: in model space, on the model's device.
        method, options: as for the model's ``log_density``.
        progress: called with (samples done, samples in all).
    """
    size = max(1, _DENSITY_ROWS // x.shape[1])
    parts = []
    for part in x.split(size):
        parts.append(model.log_density(part, method, **options))
        if progress:
            progress(min(size * len(parts), len(x)), len(x))
    return LogDensity(*(torch.cat(values) for values in zip(*parts, strict=True)))


def likelihood(
    model: Model,
    x: Tensor,
    method: str | None = None,
    *,
    transform: Transform | None = None,
    bits: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Negative log-likelihood of held-out samples x (N, D), in nats and, of grey values, in bits.

    Args:
        model, x, method, progress: as for :func:`log_densities`.
        transform: of the rows to x, for their likelihood as they are given.
        bits: whether bits per dimension are wanted, of grey values that were dequantised.

    Returns:
        Dictionary: ``nats`` and, with a transform, ``nats_as_given``, each :func:`statistics` over samples;
        ``nats_per_dimension`` and, where asked for, ``bits_per_dimension``, each their mean and
        standard_error; with a transform by logits, ``nats_of_logits``, statistics before standardising, as
        published. ``error``, the mean and the largest estimated error of a sample's log-likelihood in nats;
        ``ends``, the largest probability outside an interval of integration. All are None where a density
        exists for no sample. ``samples``; ``diverged``, the number of samples of which a conditional has no
        density, which all means but the trimmed one leave out.
    """
    found = log_densities(model, x, method, progress=progress)
    nats, features = -found.log_density.double().sum(1), x.shape[1]
    exists = nats.isfinite()
    kinds = {"nats": nats}
    if transform is not None:
        kinds["nats_as_given"] = nats + transform.log_volume(x)
        if transform.logit_alpha:
            kinds["nats_of_logits"] = nats + transform.log_scale
    result: dict[str, Any] = {name: statistics(values) for name, values in kinds.items()}
    result |= {"nats_per_dimension": None, "error": None, "ends": None}
    if exists.any():
        error = found.error[exists].double().sum(1)
        result["nats_per_dimension"] = summary([nats[exists]], features)
        if bits and transform is not None:
            result["bits_per_dimension"] = summary([kinds["nats_as_given"][exists] / math.log(2)], features)
        result["error"] = {"mean": error.mean().item(), "largest": error.max().item()}
        result["ends"] = found.ends[exists].max().item()
    return result | {"samples": len(x), "diverged": int((~exists).sum())}


def statistics(nats: Tensor) -> dict[str, float | None] | None:
    """What is to be known of samples' negative log-likelihoods (N,), NaN where there is no density.

    Returns:
        Dictionary: ``mean``, ``standard_error`` and ``worst``, the largest, over samples with a density;
        ``trimmed_mean``, the mean without the ceil(N / 100) largest, and ``median``, to which a sample
        without a density is larger than any other: None where they are not finite. None in place of the
        dictionary where no sample has a density.
    """
    exists = nats.isfinite()
    mean = summary([nats[exists]], 1)
    if mean is None:
        return None
    ordered, n = _ordered(nats), len(nats)
    robust = {
        "trimmed_mean": trimmed_mean(nats).item(),
        "median": ordered[(n - 1) // 2 : n // 2 + 1].mean().item(),
    }
    found = {name: value if math.isfinite(value) else None for name, value in robust.items()}
    return mean | found | {"worst": nats[exists].max().item()}


def trimmed_mean(nats: Tensor) -> Tensor:
    """The mean of nats (N,) without the ceil(N / 100) largest; what is not finite is larger than any."""
    return _ordered(nats)[: len(nats) - math.ceil(len(nats) / 100)].mean()


def _ordered(nats: Tensor) -> Tensor:
    return nats.double().where(nats.isfinite(), torch.inf).sort().values


class Grid(NamedTuple):
    """A density (rows of y, columns of x) at the points of a regular grid, and its corner points (2,)."""

    density: Tensor
    low: Tensor
    high: Tensor


def density_grid(
    model: Model, x: Tensor, method: str | None = None, *, progress: Progress | None = None
) -> Grid:
    """The density of a two-dimensional model around samples x (N, 2); 0 where it does not exist.

    Arguments as for :func:`likelihood`.
    """
    low, high = (x[:_QUANTILE_ROWS].double().quantile(q, dim=0) for q in (0.002, 0.998))
    margin = 0.15 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    lines = [torch.linspace(float(a), float(b), GRID_POINTS).to(x) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(lines[1], lines[0]).flip(1)
    found = log_densities(model, grid, method, progress=progress).log_density.sum(1).exp().nan_to_num(nan=0.0)
    return Grid(found.reshape(GRID_POINTS, GRID_POINTS), low, high)
