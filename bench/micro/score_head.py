"""score_head on rows: (s, s'), or with the backward pass, against autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fastcsm import functional

from ..baselines import head
from ..baselines.head import Rows
from ..harness.case import Contender, Outputs, own_contenders
from .rows import RowsCase, fused, gradients

Scores = Callable[[Rows], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ScoresOfRows(RowsCase):
    """score_head, float32: (s, s'), or also the gradients of context, weights and biases for an upstream."""

    backward: bool = False

    op = "score_head"

    def title(self) -> str:
        return f"{super().title()}, {'forward and backward' if self.backward else 'forward'}"

    def variants(self) -> Sequence[ScoresOfRows]:
        return [replace(self, backward=False), replace(self, backward=True)]

    def operations(self) -> float:
        """2 (C H_1 + 2 sum H_k H_{k+1}) a row, 2 * 2 * 2E H_1 more with E frequencies; with the backward
        pass those of csm_loss."""
        return self.operations_of("loss" if self.backward else "scores")

    def bytes(self) -> float:
        """c and x read, s and s' written; backward: upstreams read, gradients of c and parameters written."""
        numbers = self.rows * (self.context + 3) + self.parameters()
        return 4.0 * (numbers + (self.rows * (self.context + 2) + self.parameters() if self.backward else 0))

    def _call(self, scores: Scores, rows: Rows) -> Outputs:
        pair = scores(rows)
        found = dict(zip(("score", "derivative"), (part.detach() for part in pair), strict=True))
        if self.backward:
            upstream = torch.randn(2, self.rows, generator=torch.Generator().manual_seed(1))
            found |= gradients(pair, list(upstream.to(pair[0].dtype)), rows)
        return found

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        rows = self.head(self.context)[0].to(torch.float32, gradients=self.backward)

        def of(scores: Scores) -> Callable[[], Outputs]:
            return partial(self._call, scores, rows)

        label = "eager double backward" if self.backward else "eager, autograd.grad"
        eager = partial(head.scores_double_backward, graph=self.backward)
        found = {
            "double_backward": Contender(label, of(eager)),
            "tangent": Contender("hand-written tangent, eager", of(head.scores_tangent)),
            "jvp": Contender("torch.func.jvp", of(head.scores_jvp)),
        }
        if compiled:
            tangent = torch.compile(head.scores_tangent, dynamic=False)
            found["compile_tangent"] = Contender("torch.compile of the tangent", of(tangent), compiled=True)
        return found | own_contenders(of(partial(fused, functional.score_head)), precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        rows = self.head(self.context)[0].to(torch.float64, gradients=self.backward)
        return self._call(head.scores_tangent, rows), {}
