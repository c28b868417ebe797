"""langevin on rows against a Python loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcsm import functional, random

from ..baselines import langevin
from ..baselines.head import Rows
from ..baselines.langevin import Noise, Stages
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused, step_operations


def geometric(levels: int) -> list[float]:
    """Noise levels from 1 to 0.04."""
    ratio = 0.04 ** (1 / max(1, levels - 1))
    return [ratio**i for i in range(levels)]


@dataclass(frozen=True)
class Langevin(RowsCase):
    """langevin with the conditional head, float32: log sigma_i is the last context feature, s over sigma_i.

    ``levels`` geometric noise levels from 1 to 0.04, ``steps`` Langevin steps each, e_i = 0.2 sigma_i^2.
    """

    rows: int = 4096
    levels: int = 10
    steps: int = 20

    op = "langevin"
    quick_rows = 64

    def variants(self) -> Sequence[Langevin]:
        return [self, replace(self, activation="silu", frequencies=16)]

    def suite(self) -> Sequence[Langevin]:
        return [replace(self, rows=rows) for rows in (64, 1024)]

    def title(self) -> str:
        return f"{super().title()}, {self.levels} x {self.steps} steps"

    def operations(self) -> float:
        """2 sum H_k H_{k+1} a row and step (2 * 2E H_1 more with E frequencies), 2 C H_1 once a row."""
        step = step_operations(self.hidden, self.frequencies)
        return self.rows * (self.levels * self.steps * step + 2.0 * self.context * self.hidden[0])

    def bytes(self) -> float:
        """c (without log sigma) and x read, the drawn x written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def inputs(self) -> tuple[Rows, Stages]:
        sigmas = geometric(self.levels)
        stages = Stages(
            step_sizes=[0.2 * sigma**2 for sigma in sigmas],
            score_scales=[1 / sigma for sigma in sigmas],
            stage_features=[math.log(sigma) for sigma in sigmas],
            steps=self.steps,
        )
        return self.head(self.context - 1)[0], stages

    def _noise(self, dtype: torch.dtype) -> Noise:
        samples, dimensions = torch.arange(self.rows), torch.zeros(self.rows, dtype=torch.int64)
        return lambda k: random.normal(0, samples, dimensions, k).to(dtype)

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows, stages = self.inputs()

        def own() -> Outputs:
            return {"x": fused(functional.langevin, rows, seed=0, **stages._asdict())}

        def plain(label: str, function: Callable[..., Tensor], **options: Any) -> Contender:
            step = {"step_function": options.pop("step")} if "step" in options else {}

            def run(noise: Noise | None = None) -> Outputs:
                return {"x": function(rows, stages, noise, **step)}

            return Contender(label, run, check=lambda: run(self._noise(torch.float32)), **options)

        found = {
            "loop": plain("eager loop", langevin.langevin_loop),
            "hoisted": plain("eager loop, context hoisted", langevin.langevin_hoisted),
        }
        if compiled:
            label = "torch.compile of the hoisted step"
            step = torch.compile(langevin.langevin_step, dynamic=False)
            found["compile_hoisted"] = plain(label, langevin.langevin_hoisted, compiled=True, step=step)
        return found | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows, stages = self.inputs()
        noise = self._noise(torch.float64)
        return {"x": langevin.langevin_loop(rows.to(torch.float64), stages, noise)}, {}
