"""langevin_draw: whole samples, against a loop over dimensions timed on some of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastcsm import random
from fastcsm.networks.heads import Part
from fastcsm.nn import ARCSM, NoiseSchedule, ScoreHead

from ..baselines.head import Rows
from ..baselines.langevin import DrawLoop, Noise, Stages
from ..baselines.masked import parameters, sharing, use_plain_layers
from ..harness.case import Case, Contender, Outputs, own_contenders, widths
from .masked_linear import made, made_operations
from .rows import head_numbers, head_operations


@dataclass(frozen=True)
class Draw(Case):
    """ARCSM.sample with a MADE, float32, in raster order: L levels from 1 to 0.04 of T steps each.

    One parameter set serves all levels and reads log sigma, or each level has its own: ``sets`` is 1 or L.

    The loop is timed on ``measured`` dimensions spread over all, an equal share of them in each round, and
    its time per dimension taken D times. The check gives it and the fused draw the same Philox noise: the
    variables of one such share must agree with the loop in float64, given the variables before them.
    """

    features: int = 784
    hidden: tuple[int, ...] = (1024, 1024)
    context: int = 32
    head: tuple[int, ...] = (128, 128)
    samples: int = 64
    levels: int = 10
    steps: int = 20
    activation: str = "softplus"
    sets: int = 1
    measured: int = 40

    op = "langevin_draw"
    quick_sizes: ClassVar = {"features": 32, "samples": 16, "hidden": 128}
    warm_sizes: ClassVar = {"features": 5, "samples": 4, "hidden": 8, "steps": 1}
    most_rounds = 4
    warmup = 0

    def title(self) -> str:
        form = "conditional" if self.sets == 1 else f"staged, {self.sets} parameter sets"
        sizes = f"D = {self.features}, hidden {widths(self.hidden)}, C = {self.context}"
        head = f"head {widths(self.head)} {self.activation}"
        steps = f"{self.levels} x {self.steps} steps"
        return f"{self.op}: {form}, {self.samples} samples, {sizes}, {head}, {steps}"

    def operations(self) -> float:
        """One masked forward pass a parameter set; the head's context part once and a step's products."""
        return self._operations(self.levels * self.steps)

    def _operations(self, scores: int) -> float:
        """Those of a draw that takes so many scores a variable."""
        net = made(self.features, self.hidden, self.context)
        own = scores * head_operations("score", 0, self.head) + 2.0 * self.sets * self.context * self.head[0]
        return self.sets * made_operations(net, self.samples, False) + self.samples * self.features * own

    def bytes(self) -> float:
        """Every parameter set read, the samples written."""
        net = made(self.features, self.hidden, self.context)
        numbers = parameters(net) + head_numbers(self.context + (self.sets == 1), self.head)
        return 4.0 * (self.sets * numbers + self.samples * self.features)

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.samples, max(self.head), max(self.head)

    def variants(self) -> Sequence[Draw]:
        return [replace(self, sets=1), replace(self, sets=self.levels)]

    def suite(self) -> Sequence[Draw]:
        return [replace(self, features=64, hidden=(512, 512), measured=16, sets=1)]

    def model(self) -> ARCSM:
        """Random parameters; of several sets each is a little different."""
        net = made(self.features, self.hidden, self.context)
        form = "conditional" if self.sets == 1 else "staged"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = ScoreHead(self.context + (self.sets == 1), self.head, self.activation, frequencies=0)
        model = ARCSM(net, head, noise=NoiseSchedule(1.0, 0.04, self.levels, form=form))
        for _ in range(self.sets - 1):
            model.advance_stage()
            with torch.no_grad():
                for parameter in (*model.context_net.parameters(), *model.head.parameters()):
                    parameter.mul_(1.02)
        return model.eval()

    def loop(self, model: ARCSM) -> DrawLoop:
        """The straightforward draw of the same model."""
        return DrawLoop([self._part(part) for part in model.parts()])

    def _part(self, part: Part) -> tuple[nn.Module, Rows, Stages]:
        nothing = torch.empty(0)
        rows = Rows(nothing, nothing, *part.head.layers)
        stages = Stages.annealed(part.sigmas, self.steps, part.head.reads_level)
        return use_plain_layers(sharing(part.context_net)), rows, stages

    def noise(self, dtype: torch.dtype) -> Callable[[int], Noise]:
        """fastcsm's noise of seed 0, by variable and step."""

        def of(variable: int) -> Noise:
            samples, variables = torch.arange(self.samples), torch.full((self.samples,), variable)
            return lambda k: random.normal(0, samples, variables, k).to(dtype)

        return of

    def shares(self) -> list[list[int]]:
        """The measured dimensions, as the shares of the rounds; each is spread over all dimensions."""
        count = min(self.measured, self.features)
        chosen = [(2 * k + 1) * self.features // (2 * count) for k in range(count)]
        parts = min(self.most_rounds, count)
        return [chosen[k::parts] for k in range(parts)]

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        model, shares = self.model(), self.shares()
        loop, turns = self.loop(model), itertools.cycle(shares)
        data = torch.randn(self.samples, self.features, generator=torch.Generator().manual_seed(2))

        def own() -> Outputs:
            return {"x": model.sample(self.samples, method="langevin", seed=0, steps=self.steps)}

        @functools.cache
        def drawn(precision: str) -> tuple[Tensor, Tensor]:
            x = own()["x"]
            return x, loop.truth(x, shares[0], self.noise(torch.float64))

        def error(again: bool) -> Outputs:
            x, truth = drawn(torch.get_float32_matmul_precision())
            found = loop.run(x, shares[0], self.noise(x.dtype)) if again else x[:, shares[0]]
            return {"error": found - truth}

        count = sum(map(len, shares))
        label = "eager loop, mask * weight"
        if count < self.features:
            label += f" (extrapolated from {count} of {self.features} dimensions)"
        eager = Contender(
            label,
            lambda: {"x": loop.run(data, next(turns))},
            check=lambda: error(True),
            memory=lambda: {"x": loop.run(data, [self.features - 1])},
            scale=self.features * len(shares) / count,
        )
        return {"loop": eager} | own_contenders(own, precisions, check=lambda: error(False))

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        dimensions = self.shares()[0]
        truth = torch.zeros(self.samples, len(dimensions), dtype=torch.float64)
        return {"error": truth}, {"error": (self.samples * len(dimensions)) ** 0.5}
