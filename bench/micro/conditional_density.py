"""conditional_density on rows against eager quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcsm import functional

from ..baselines.quadrature import HIGH, LOW, eager_quadrature
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused, step_operations

SIGMA = 0.04
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
    suite_rows, quick_rows = 1568, 512

    def title(self) -> str:
        return f"{super().title()}, {self.panels} panels of 16 nodes at first"

    def operations(self) -> float:
        """2 sum H_k H_{k+1} a node of the first panels, 2 C H_1 once a row; what refinement adds, and the
        quadrature itself, count nothing. The eager row has twice the panels and no others."""
        return self._operations(self.panels)

    def _operations(self, panels: int) -> float:
        nodes = NODES * panels * step_operations(self.hidden, self.frequencies)
        return self.rows * (nodes + 2.0 * self.context * self.hidden[0])

    def bytes(self) -> float:
        """c (without log sigma) and x read, log q written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows, panels = self.restoring_head(), 2 * self.panels

        @torch.no_grad()
        def fixed() -> Outputs:
            return {"log_density": eager_quadrature(rows, sigma=SIGMA, panels=panels)}

        def own() -> Outputs:
            level = {"score_scale": 1 / SIGMA, "stage_feature": math.log(SIGMA)}
            options = {"low": LOW, "high": HIGH, "tolerance": 1e-4, "panels": self.panels}
            found = fused(functional.conditional_density, rows, **level, **options)
            return {"log_density": found.log_density}

        label = f"eager quadrature, {panels} panels for all rows"
        eager = Contender(label, fixed, operations=self._operations(panels))
        return {"fixed": eager} | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows = self.restoring_head().to(torch.float64)
        return {"log_density": eager_quadrature(rows, sigma=SIGMA, panels=12)}, {}
