"""Statistics that tell strange samples from usual ones, and how well they do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.model import Model
from .likelihood import Progress, log_densities


@torch.no_grad()
def anomaly_scores(
    model: Model, x: Tensor, method: str | None = None, *, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Two statistics of samples x (N, D), lower for stranger samples: h = sum_d s_d (paper, section 5.5) and
    log q, each (N,), under the keys "score_sum" and "log_likelihood". Arguments as for :func:`likelihood`.

    log q is NaN where it does not exist.
    """
    sums = torch.cat([model.score(part).double().sum(1) for part in x.split(256)])
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
