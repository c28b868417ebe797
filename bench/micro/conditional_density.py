"""conditional_density on rows against eager quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastcsm import functional

from ..baselines.quadrature import HIGH, LOW, eager_quadrature
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused

SIGMA = 0.04
#: What functional.conditional_density is told of it, and the interval of the baseline.
LEVEL = {"score_scale": 1 / SIGMA, "stage_feature": math.log(SIGMA), "low": LOW, "high": HIGH}
#: Evaluations of a panel.
NODES = 16


@dataclass(frozen=True)
class LogDensity(RowsCase):
    """log q(x given c) of rows at sigma = 0.04 by quadrature over [-1.2, 1.2], float32, tolerance 1e-4.

    The head is conditional, without frequencies, and begins with ``panels`` panels of 16 evaluations.
    """

    panels: int = 4

    op = "conditional_density"
    most_rounds = 3
    warmup = 1
    suite_rows = 1568
    quick_sizes: ClassVar = {"rows": 512}

    def title(self) -> str:
        return f"{super().title()}, {self.panels} panels of 16 nodes at first"

    def operations(self) -> float:
        """Those of a score a node of the first panels; what refinement adds, and the quadrature itself, count
        nothing. The eager row has twice the panels and no others."""
        return self.operations_of_scores(NODES * self.panels)

    def bytes(self) -> float:
        """c (without log sigma) and x read, log q written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows, panels = self.restoring_head(), 2 * self.panels

        @torch.no_grad()
        def fixed() -> Outputs:
            return {"log_density": eager_quadrature(rows, sigma=SIGMA, panels=panels)}

        def own() -> Outputs:
            options = {"tolerance": 1e-4, "panels": self.panels, **LEVEL}
            found = fused(functional.conditional_density, rows, **options)
            return {"log_density": found.log_density}

        label = f"eager quadrature, {panels} panels for all rows"
        eager = Contender(label, fixed, operations=self.operations_of_scores(NODES * panels))
        return {"fixed": eager} | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows = self.restoring_head().to(torch.float64)
        return {"log_density": eager_quadrature(rows, sigma=SIGMA, panels=12)}, {}
