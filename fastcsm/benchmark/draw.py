"""langevin_draw: whole samples, against a loop over dimensions timed on some of them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .. import random
from ..nn import ARCSM, NoiseSchedule, ScoreHead
from ..sampling import RELATIVE_STEP
from . import baselines
from .base import Case, Contender, Outputs, own_contenders, widths
from .cases import head_numbers, step_operations
from .masked import made
from .peers import edges, made_numbers, sharing, use_plain_layers

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Draw"]

Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class Draw(Case):
    """ARCSM.sample with a MADE, float32, in raster order: L levels from 1 to 0.04 of T steps each.

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
    staged: bool = False
    measured: int = 40

    op = "langevin_draw"
    most_rounds = 4
    warmup = 0

    def title(self) -> str:
        form = f"staged, {self.levels} parameter sets" if self.staged else "conditional"
        sizes = f"D = {self.features}, hidden {widths(self.hidden)}, C = {self.context}"
        head = f"head {widths(self.head)} {self.activation}"
        steps = f"{self.levels} x {self.steps} steps"
        return f"{self.op}: {form}, {self.samples} samples, {sizes}, {head}, {steps}"

    def operations(self) -> float:
        """One masked forward pass a parameter set; the head's context part once and a step's products."""
        rows = self.samples * self.features
        sets = self.levels if self.staged else 1
        net = made(self.features, self.hidden, self.context)
        steps = self.levels * self.steps * step_operations(self.head, 0)
        once = 2.0 * sets * self.context * self.head[0]
        return 2.0 * self.samples * sets * sum(edges(net)) + rows * (steps + once)

    def bytes(self) -> float:
        """Every parameter set read, the samples written."""
        net = made(self.features, self.hidden, self.context)
        numbers = made_numbers(net) + head_numbers(self.context + (not self.staged), self.head)
        return 4.0 * ((self.levels if self.staged else 1) * numbers + self.samples * self.features)

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.samples, max(self.head), max(self.head)

    def variants(self) -> list[Self]:
        return [replace(self, staged=False), replace(self, staged=True)]

    def suite(self) -> list[Self]:
        return [replace(self, features=64, hidden=(512, 512), measured=16, staged=False)]

    def quick(self) -> Self:
        hidden = tuple(min(width, 128) for width in self.hidden)
        return replace(self, features=min(self.features, 32), samples=min(self.samples, 16), hidden=hidden)

    def warm(self) -> Self:
        return replace(self, features=5, samples=4, hidden=tuple(8 for _ in self.hidden), steps=1)

    def model(self) -> ARCSM:
        """Random parameters; a staged model has as many sets, each a little different."""
        net = made(self.features, self.hidden, self.context)
        noise = NoiseSchedule(1.0, 0.04, self.levels, form="staged" if self.staged else "conditional")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = ScoreHead(self.context + (not self.staged), self.head, self.activation, frequencies=0)
        model = ARCSM(net, head, noise=noise)
        for _ in range(self.levels - 1 if self.staged else 0):
            model.advance_stage()
            with torch.no_grad():
                for parameter in (*model.context_net.parameters(), *model.head.parameters()):
                    parameter.mul_(1.02)
        return model.eval()

    def shares(self) -> list[list[int]]:
        """The measured dimensions, as the shares of the rounds; each is spread over all dimensions."""
        count = min(self.measured, self.features)
        chosen = [(2 * k + 1) * self.features // (2 * count) for k in range(count)]
        parts = min(self.most_rounds, count)
        return [chosen[k::parts] for k in range(parts)]

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        model = self.model()
        peer = Loop(model)
        shares = self.shares()
        turns = itertools.cycle(shares)
        samples = torch.arange(self.samples)
        data = torch.randn(self.samples, self.features, generator=torch.Generator().manual_seed(2))

        def own() -> Outputs:
            return {"x": model.sample(self.samples, seed=0, steps=self.steps)}

        def loop() -> Outputs:
            return {"x": peer.run(data, next(turns), self.steps)}

        @functools.cache
        def drawn(precision: str) -> tuple[Tensor, Tensor]:
            x = own()["x"]
            return x, peer.truth(x, shares[0], self.steps)

        def check_own() -> Outputs:
            x, truth = drawn(torch.get_float32_matmul_precision())
            return {"error": x[:, shares[0]] - truth}

        def check_loop() -> Outputs:
            x, truth = drawn(torch.get_float32_matmul_precision())
            found = peer.run(x, shares[0], self.steps, lambda d: _philox(samples, d, x.dtype))
            return {"error": found - truth}

        count = sum(map(len, shares))
        label = "eager loop, mask * weight"
        if count < self.features:
            label += f" (extrapolated from {count} of {self.features} dimensions)"
        return {
            "loop": Contender(
                label,
                loop,
                check=check_loop,
                memory=lambda: {"x": peer.run(data, [self.features - 1], self.steps)},
                scale=self.features * len(shares) / count,
            )
        } | own_contenders(own, precisions, check=check_own)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        dimensions = self.shares()[0]
        truth = torch.zeros(self.samples, len(dimensions), dtype=torch.float64)
        return {"error": truth}, {"error": (self.samples * len(dimensions)) ** 0.5}


class Loop:
    """The straightforward draw: for every variable a whole forward pass, and one for every parameter set.

    Fair because autograd is off, the head's steps are those of :func:`baselines.langevin_loop`, and the
    conditional form computes the context once a variable.
    """

    def __init__(self, model: ARCSM):
        parts: list[Any] = [*model.stages, model]
        self.networks = [use_plain_layers(sharing(part.context_net)) for part in parts]
        self.heads: list[ScoreHead] = [part.head for part in parts]
        sigmas = cast(NoiseSchedule, model.noise).sigmas
        levels = [sigmas] if model.conditional else [[sigma] for sigma in sigmas]
        self.schedules = [
            {
                "step_sizes": [RELATIVE_STEP * sigma**2 for sigma in group],
                "score_scales": [1 / sigma if model.conditional else 1.0 for sigma in group],
                "stage_features": [math.log(sigma) if model.conditional else None for sigma in group],
            }
            for group in levels
        ]

    @torch.no_grad()
    def run(
        self, x: Tensor, variables: Sequence[int], steps: int, noise: Callable[[int], Noise] | None = None
    ) -> Tensor:
        """(B, len(variables)): those variables drawn, each given the ones before it in x (B, D).

        ``noise(d)(k)`` replaces torch's generator.
        """
        columns = []
        for d in variables:
            draw = noise(d) if noise else None
            value = torch.randn_like(x[:, d]) if draw is None else draw(0)
            for stage, network in enumerate(self.networks):
                value = self._stage(stage, network(x)[:, d], value, steps, draw)
            columns.append(value)
        return torch.stack(columns, 1)

    @torch.no_grad()
    def truth(self, x: Tensor, variables: Sequence[int], steps: int) -> Tensor:
        """As :meth:`run`, in float64, all variables together, with fastcsm's noise of seed 0."""
        samples = torch.arange(len(x)).repeat_interleave(len(variables))
        draw = _philox(samples, torch.tensor(variables).repeat(len(x)), torch.float64)
        value = draw(0)
        for stage, network in enumerate(self.networks):
            context = copy.deepcopy(network).double()(x.double())[:, variables].flatten(0, 1)
            value = self._stage(stage, context, value, steps, draw)
        return value.view(len(x), len(variables))

    def _stage(self, stage: int, context: Tensor, x: Tensor, steps: int, draw: Noise | None) -> Tensor:
        head, schedule = self.heads[stage], self.schedules[stage]
        before = steps * sum(len(other["step_sizes"]) for other in self.schedules[:stage])
        return baselines.langevin_loop(
            context,
            x,
            [weight.to(x.dtype) for weight in head.weights],
            [bias.to(x.dtype) for bias in head.biases],
            head.frequencies.to(x.dtype),
            head.activation,
            **schedule,
            steps=steps,
            noise=None if draw is None else lambda k: draw(before + k),
        )


def _philox(samples: Tensor, variables: Tensor | int, dtype: torch.dtype) -> Noise:
    """The noise of seed 0 by step, for rows (N,) of samples and variables."""
    variables = torch.as_tensor(variables).expand_as(samples)
    return lambda k: random.normal(0, samples, variables, k).to(dtype)
