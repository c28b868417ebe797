"""langevin on rows against a Python loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastcsm import functional, random
from fastcsm.reference.preconditioning import SQUASH

from ..baselines import langevin
from ..baselines.head import Rows
from ..baselines.langevin import Noise, Stages
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused


def geometric(levels: int) -> list[float]:
    """Noise levels from 1 to 0.04."""
    ratio = 0.04 ** (1 / max(1, levels - 1))
    return [ratio**i for i in range(levels)]


@dataclass(frozen=True)
class Langevin(RowsCase):
    """langevin with the conditional head, float32: log sigma_i is the last context feature, s over sigma_i.

    ``levels`` geometric noise levels from 1 to 0.04, ``steps`` Langevin steps each, e_i = 0.2 sigma_i^2. With
    ``squash``, u0, the head is preconditioned and passes the line -x on.
    """

    rows: int = 4096
    levels: int = 10
    steps: int = 20
    squash: float | None = None

    op = "langevin"
    quick_sizes: ClassVar = {"rows": 64}

    def variants(self) -> Sequence[Langevin]:
        return [self, replace(self, activation="silu", frequencies=16), replace(self, squash=SQUASH)]

    def suite(self) -> Sequence[Langevin]:
        return [replace(self, rows=rows) for rows in (64, 1024)]

    def title(self) -> str:
        kind = "" if self.squash is None else ", preconditioned"
        return f"{super().title()}, {self.levels} x {self.steps} steps{kind}"

    def operations(self) -> float:
        """Those of a score a step."""
        return self.operations_of_scores(self.levels * self.steps)

    def bytes(self) -> float:
        """c (without log sigma) and x read, the drawn x written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def inputs(self) -> tuple[Rows, Stages]:
        stages = Stages.annealed(geometric(self.levels), self.steps)
        if self.squash is None:
            return self.head(self.context - 1)[0], stages
        return self.preconditioned_head(), stages

    def _noise(self, dtype: torch.dtype) -> Noise:
        samples, dimensions = torch.arange(self.rows), torch.zeros(self.rows, dtype=torch.int64)
        return lambda k: random.normal(0, samples, dimensions, k).to(dtype)

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows, stages = self.inputs()

        def own() -> Outputs:
            return {"x": fused(functional.langevin, rows, seed=0, squash=self.squash, **stages._asdict())}

        def plain(label: str, function: Callable[..., Tensor], **options: Any) -> Contender:
            def run(noise: Noise | None = None) -> Outputs:
                return {"x": function(rows, stages, noise)}

            return Contender(label, run, check=lambda: run(self._noise(torch.float32)), **options)

        found = {"loop": plain("eager loop", self._loop())}
        if self.squash is not None:
            return found | own_contenders(own, precisions)
        found["hoisted"] = plain("eager loop, context hoisted", langevin.langevin_hoisted)
        if compiled:
            label = "torch.compile of the hoisted step"
            step = torch.compile(langevin.langevin_step, dynamic=False)
            hoisted = partial(langevin.langevin_hoisted, step_function=step)
            found["compile_hoisted"] = plain(label, hoisted, compiled=True)
        return found | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows, stages = self.inputs()
        noise = self._noise(torch.float64)
        return {"x": self._loop()(rows.to(torch.float64), stages, noise)}, {}

    def _loop(self) -> Callable[..., Tensor]:
        if self.squash is None:
            return langevin.langevin_loop
        return partial(langevin.preconditioned_langevin_loop, squash=self.squash)
