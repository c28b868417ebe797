"""probability_flow on rows against an eager Runge-Kutta loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastcsm import functional
from fastcsm.reference.preconditioning import SQUASH

from ..baselines.flow import flow_rk4, preconditioned_flow_rk4
from ..baselines.head import Rows
from ..harness.case import Contender, Outputs, own_contenders
from .conditional_density import SIGMA
from .rows import RowsCase, fused

#: Of fastcsm's flow at least: its first step is a fifth of the way, so that there are two, and of the seven
#: evaluations of a step the first is the last of the step before.
EVALUATIONS = 13


@dataclass(frozen=True)
class FlowOfRows(RowsCase):
    """probability_flow of rows from sigma = 0.04 to 1 with the change of log p, tolerance 1e-4; in float32
    whatever torch's precision of products.

    The head is conditional, without frequencies, and passes the line -x on. With ``squash``, u0, it is
    preconditioned, levels go up to 20, and the tolerance is 1e-5. The eager row takes ``steps`` steps, about
    as exact as fastcsm at its tolerance.
    """

    rows: int = 12544
    steps: int = 8
    squash: float | None = None

    op = "probability_flow"
    most_rounds = 3
    warmup = 1
    suite_rows = 1568
    quick_sizes: ClassVar = {"rows": 512}

    def variants(self) -> Sequence[FlowOfRows]:
        return [self, replace(self, squash=SQUASH, steps=self.steps * 3 // 2)]

    def title(self) -> str:
        return super().title() + ("" if self.squash is None else ", preconditioned")

    @property
    def sigma_to(self) -> float:
        return 1.0 if self.squash is None else 20.0

    def inputs(self) -> Rows:
        return self.restoring_head() if self.squash is None else self.preconditioned_head()

    def operations(self) -> float:
        """Those of two scores an evaluation, primal and tangent; 13 evaluations, those of two steps, the
        fewest that fastcsm takes. The eager row has four a step."""
        return self.operations_of_scores(2 * EVALUATIONS)

    def bytes(self) -> float:
        """c (without log sigma) and x read, the point and the change written; parameters read."""
        return 4.0 * (self.rows * (self.context + 2) + self.parameters())

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows = self.inputs()

        def own() -> Outputs:
            levels = {"sigma_from": SIGMA, "sigma_to": self.sigma_to, "squash": self.squash}
            tolerance = 1e-4 if self.squash is None else 1e-5
            found = fused(functional.probability_flow, rows, tolerance=tolerance, **levels)
            return {"point": found.point, "change": found.change}

        label = f"eager Runge-Kutta 4, {self.steps} steps for all rows"
        operations = self.operations_of_scores(2 * 4 * self.steps)
        eager = Contender(label, lambda: self._by_rk4(rows, self.steps), operations=operations)
        return {"fixed": eager} | own_contenders(own, ["highest"], limit=1e-4)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        return self._by_rk4(self.inputs().to(torch.float64), 4 * self.steps), {}

    def _by_rk4(self, rows: Rows, steps: int) -> Outputs:
        levels = {"sigma_from": SIGMA, "sigma_to": self.sigma_to}
        if self.squash is None:
            point, change = flow_rk4(rows, **levels, steps=steps)
        else:
            point, change = preconditioned_flow_rk4(rows, **levels, squash=self.squash, steps=steps)
        return {"point": point, "change": change}
