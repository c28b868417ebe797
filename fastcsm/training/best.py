"""The best held-out loss so far, and the weights that had it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Best:
    """What a run remembers of its held-out evaluations.

    Attributes:
        loss: lowest held-out loss, infinity before the first evaluation.
        step: when it was measured.
        stale: evaluations since.
        weights: state_dict of the model that had it, copied; empty unless asked for.
    """

    loss: float = math.inf
    step: int = 0
    stale: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def update(self, loss: float, step: int, model: nn.Module, keep: bool) -> None:
        """Take note of an evaluation of ``model``; its weights are copied if it is the best and ``keep``.

        A loss that is NaN, of a model that gives some row no density, is never the best.
        """
        if loss < self.loss:
            self.loss, self.step, self.stale = loss, step, 0
            if keep:
                self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        else:
            self.stale += 1

    def state(self) -> dict[str, Any]:
        """Everything but the weights, for JSON."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss, "step": self.step, "stale": self.stale}

    @classmethod
    def restore(cls, state: dict[str, Any] | None, weights: dict[str, Tensor]) -> Best:
        """What :meth:`state` and the weights were taken from; ``None`` is a run without evaluations."""
        if state is None:
            return cls()
        loss = math.inf if state["loss"] is None else state["loss"]
        return cls(loss, state["step"], state["stale"], weights)
