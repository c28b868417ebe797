"""Draws variable by variable: any context network, any head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import random
from ..densities import Conditionals
from ..functional import Stages
from ..networks.context import in_order, one_by_one
from ..networks.heads import Part
from .batch import Batch


class Langevin:
    """Each variable by the stages of all parts, one part after the other."""

    def __init__(self, parts: Sequence[Part], stages: Sequence[Stages]):
        self._parts, self._stages = parts, stages

    def batch_size(self) -> int | None:
        """Samples to draw together; None for all."""
        return None

    def __call__(self, batch: Batch) -> Tensor:
        """x (B, D) with the variables drawn, denoised where that is asked for."""
        x, samples, seed, order, known, variance, tell = batch
        contexts = [one_by_one(part.context_net, x) for part in self._parts]
        clean = x.clone()
        for k, d in enumerate(order):
            if k >= known:
                dimension = torch.full_like(samples, d)
                value, step = random.normal(seed, samples, dimension, 0, x.dtype), 1
                for part, stages, context_of in zip(self._parts, self._stages, contexts, strict=True):
                    context = context_of(k, d)
                    value = part.head.langevin(
                        context,
                        value,
                        stages,
                        seed=seed,
                        samples=samples,
                        dimensions=dimension,
                        first_step=step,
                    )
                    step += len(stages.step_sizes) * stages.steps
                x[:, d] = clean[:, d] = value
                if variance:
                    clean[:, d] += variance * _last_score(part, context, value)
            if tell:
                tell(k + 1)
        return clean


class Quantiles:
    """Each variable as the quantile of a uniform number."""

    def __init__(self, part: Part, rows: Conditionals):
        self._part, self._rows = part, rows

    def batch_size(self) -> int | None:
        """Samples to draw together; None for all."""
        return None

    def __call__(self, batch: Batch) -> Tensor:
        """x (B, D) with the variables drawn, denoised where that is asked for."""
        x, samples, seed, _, known, variance, tell = batch
        clean = x.clone()
        for k, (d, context) in enumerate(in_order(self._part.context_net, x)):
            if k >= known:
                u = random.uniform(seed, samples, torch.full_like(samples, d), 0, x.dtype)
                x[:, d] = clean[:, d] = self._rows.quantile(context, u)
                if variance:
                    clean[:, d] += variance * _last_score(self._part, context, x[:, d])
            if tell:
                tell(k + 1)
        return clean


def _last_score(part: Part, context: Tensor, x: Tensor) -> Tensor:
    """Score of the smallest noise level at x (B,), given contexts (B, C)."""
    return part.head.at(part.sigmas[-1]).score(context, x)
