"""conditional_density on rows against eager quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastcsm import functional
from fastcsm.reference.preconditioning import SQUASH

from ..baselines.head import Rows
from ..baselines.quadrature import HIGH, LOW, OWN, eager_quadrature
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused

SIGMA = 0.04
#: What functional.conditional_density is told of it, and the interval of the baseline.
LEVEL = {"score_scale": 1 / SIGMA, "stage_feature": math.log(SIGMA), "low": LOW, "high": HIGH}
OWN_LEVEL = {"stage_feature": 0.0, "low": OWN[0], "high": OWN[1]}
#: Evaluations of a panel.
NODES = 16


@dataclass(frozen=True)
class LogDensity(RowsCase):
    """log q(x given c) of rows at sigma = 0.04 by quadrature over [-1.2, 1.2], float32, tolerance 1e-4.

    The head is conditional, without frequencies, and begins with ``panels`` panels of 16 evaluations. With
    ``squash``, u0, it is preconditioned, of v at sigma = 1 over [-8, 8].
    """

    panels: int = 4
    squash: float | None = None

    op = "conditional_density"
    most_rounds = 3
    warmup = 1
    suite_rows = 1568
    quick_sizes: ClassVar = {"rows": 512}

    def variants(self) -> Sequence[LogDensity]:
        return [self, replace(self, squash=SQUASH)]

    def title(self) -> str:
        kind = "" if self.squash is None else ", preconditioned"
        return f"{super().title()}, {self.panels} panels of 16 nodes at first{kind}"

    def operations(self) -> float:
        """Those of a score a node of the first panels; what refinement adds, and the quadrature itself, count
        nothing. The eager row has twice the panels and no others."""
        return self.operations_of_scores(NODES * self.panels)

    def bytes(self) -> float:
        """c (without log sigma) and x read, log q written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows, panels = self.inputs(), 2 * self.panels

        @torch.no_grad()
        def fixed() -> Outputs:
            return self._eager(rows, panels)

        def own() -> Outputs:
            options = {"tolerance": 1e-4, "panels": self.panels, "squash": self.squash}
            options |= LEVEL if self.squash is None else OWN_LEVEL
            found = fused(functional.conditional_density, rows, **options)
            return {"log_density": found.log_density}

        label = f"eager quadrature, {panels} panels for all rows"
        eager = Contender(label, fixed, operations=self.operations_of_scores(NODES * panels))
        return {"fixed": eager} | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        return self._eager(self.inputs().to(torch.float64), 12), {}

    def inputs(self) -> Rows:
        return self.restoring_head() if self.squash is None else self.preconditioned_head()

    def _eager(self, rows: Rows, panels: int) -> Outputs:
        sigma = SIGMA if self.squash is None else 1.0
        return {"log_density": eager_quadrature(rows, sigma=sigma, panels=panels, squash=self.squash)}
