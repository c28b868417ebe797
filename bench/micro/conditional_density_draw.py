"""conditional_density_draw: whole samples by quantiles, beside Langevin's and a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fastcsm import random
from fastcsm.nn import ARCSM

from ..harness.case import Contender, Outputs
from .conditional_density import NODES
from .langevin_draw import Draw
from .probability_flow import EVALUATIONS
from .rows import restoring

#: Panels of a variable to begin with.
PANELS = 2


@dataclass(frozen=True)
class ExactDraw(Draw):
    """Draws by quantiles, of the density at the last level and by the probability flow, beside Langevin's."""

    op = "conditional_density_draw"

    def variants(self) -> Sequence[ExactDraw]:
        return [replace(self, sets=1)]

    def operations(self) -> float:
        """As langevin_draw's, with the nodes of a variable's first two panels in place of steps, if fewer.

        By the flow 13 evaluations more; the rows that draw by Langevin dynamics have all its steps.
        """
        return self._operations(min(NODES * PANELS, self.levels * self.steps))

    def model(self) -> ARCSM:
        model = super().model()
        restoring(model.head.weights, model.head.biases)  # type: ignore[arg-type]
        model.data_range = (-1.5, 1.5)
        return model

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        steps = self._operations(self.levels * self.steps)
        stepped = super().contenders(precisions[:1], compiled)
        found = {name: replace(entry, operations=steps) for name, entry in stepped.items()}
        own = next(name for name, entry in found.items() if entry.own)
        found[own] = replace(found[own], label="fastcsm, Langevin")
        model, variables = self.model(), self.shares()[0]
        u = random.uniform(0, torch.arange(self.samples)[:, None], torch.tensor(variables), 0, torch.float64)

        def drawn(method: str) -> Outputs:
            return {"x": model.sample(self.samples, method=method, seed=0)}

        def check(method: str) -> Outputs:
            x, wide = drawn(method)["x"].double(), self.model().double()
            rows = wide.conditionals("flow" if method == "flow" else "quadrature")
            return {"error": rows.cdf(wide.context_net(x)[:, variables], x[:, variables]) - u}

        # Limits: root-mean-square errors of the probabilities of draws.
        for method, label, evaluations, limit in (
            ("inverse_cdf", "inverse CDF", 0, 2e-3),
            ("flow", "probability flow", EVALUATIONS, 3e-2),
        ):
            found[method] = Contender(
                f"fastcsm, {label}",
                partial(drawn, method),
                own=True,
                check=partial(check, method),
                limit=limit,
                operations=self._operations(NODES * PANELS + evaluations),
            )
        return found
