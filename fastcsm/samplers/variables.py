"""Draws variable by variable: any context network, any head."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..densities import Conditionals
from ..functional import Stages
from ..networks.context import one_by_one
from ..networks.heads import Part
from .batch import Batch


class OneByOne:
    """Draws each variable by a function (contexts, numbers, dtype) -> (B,).

    The contexts are those of all parts, (B, C) each; ``numbers`` are seed, samples and dimensions, which say
    what the variable's random numbers are.
    """

    #: Samples to draw together; None for all.
    batch_size: int | None = None

    def __init__(self, parts: Sequence[Part], function: Callable[..., Tensor]):
        self._parts, self._function = parts, function

    def __call__(self, batch: Batch) -> Tensor:
        """x (B, D) with the variables drawn, denoised where that is asked for."""
        x, samples, seed, order, known, variance, tell = batch
        contexts_of = [one_by_one(part.context_net, x) for part in self._parts]
        last, clean = self._parts[-1], x.clone()
        for k, d in enumerate(order):
            if k >= known:
                contexts = [given.context(k, d) for given in contexts_of]
                numbers = {"seed": seed, "samples": samples, "dimensions": torch.full_like(samples, d)}
                x[:, d] = clean[:, d] = value = self._function(contexts, numbers, x.dtype).to(x.dtype)
                if variance:
                    own = last.head.own(contexts[-1], 1)
                    y = own.of(value)
                    clean[:, d] = own.back(y + variance * last.head.at(last.sigmas[-1]).score(own.context, y))
            if tell:
                tell(k + 1)
        for given in contexts_of:
            given.check()
        return clean


def langevin(parts: Sequence[Part], stages: Sequence[Stages]) -> OneByOne:
    """Each variable by the stages of all parts, one part after the other."""

    def draw(contexts: list[Tensor], numbers: dict[str, Any], dtype: torch.dtype) -> Tensor:
        value, step, first = random.normal(**numbers, step=0, dtype=dtype), 1, parts[0]
        if first.sigmas:
            value = first.head.prior(value, first.sigmas[0])
        for part, levels, context in zip(parts, stages, contexts, strict=True):
            own = part.head.own(context, 1)
            value = part.head.langevin(own.context, value, levels, **numbers, first_step=step)
            step += len(levels.step_sizes) * levels.steps
        return own.back(value)

    return OneByOne(parts, draw)


def quantiles(part: Part, rows: Conditionals) -> OneByOne:
    """Each variable as the quantile of a uniform number."""

    def draw(contexts: list[Tensor], numbers: dict[str, Any], dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return rows.quantile(contexts[0], random.uniform(**numbers, step=0, dtype=wide))

    return OneByOne([part], draw)
