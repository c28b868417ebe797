"""Langevin dynamics as a Python loop: of rows, and of whole samples variable after variable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcsm.samplers import RELATIVE_STEP

from .head import ACTIVATIONS, Rows, layers, score

#: The noise (N,) of global step k = 1, 2, ... (0 is where a draw begins).
Noise = Callable[[int], Tensor]


class Stages(NamedTuple):
    """Noise levels and the steps taken at each: x += e / 2 scale s + sqrt(e) z.

    Attributes:
        step_sizes, score_scales: e and the factor of the score, by level.
        stage_features: the last context feature by level; None adds no feature.
        steps: at each level.
    """

    step_sizes: Sequence[float]
    score_scales: Sequence[float]
    stage_features: Sequence[float | None]
    steps: int

    @classmethod
    def annealed(cls, sigmas: Sequence[float], steps: int, reads_level: bool = True) -> Stages:
        """Levels sigma with e = 0.2 sigma^2; a head that reads log sigma has its output over sigma."""
        scales = [1 / sigma if reads_level else 1.0 for sigma in sigmas]
        features = [math.log(sigma) if reads_level else None for sigma in sigmas]
        return cls([RELATIVE_STEP * sigma**2 for sigma in sigmas], scales, features, steps)


def langevin_loop(rows: Rows, stages: Stages, noise: Noise | None = None) -> Tensor:
    """All stages and steps of Langevin dynamics as a Python loop over the head; returns (N,).

    Fair because autograd is off, the stage's context is put together once per stage, and the noise is drawn
    by torch's own generator, which ``noise`` replaces for checks.
    """
    context, x, step = rows.context, rows.x, 1
    with torch.no_grad():
        for size, scale, feature in zip(*stages[:3], strict=True):
            c = context
            if feature is not None:
                c = torch.cat([context, context.new_full((context.shape[0], 1), feature)], 1)
            for _ in range(stages.steps):
                z = torch.randn_like(x) if noise is None else noise(step)
                s = score(rows._replace(context=c, x=x))
                x = x + (size / 2 * scale) * s + size**0.5 * z
                step += 1
    return x


def preconditioned_langevin_loop(
    rows: Rows, stages: Stages, noise: Noise | None = None, *, squash: float
) -> Tensor:
    """:func:`langevin_loop` of a preconditioned head: contexts with -ln(tau) last, and x is y; (N,)."""
    context, y, offset, step = rows.context, rows.x, rows.context[:, -1], 1
    with torch.no_grad():
        for size, _, feature in zip(*stages[:3], strict=True):
            level = offset + cast(float, feature)
            rho, kappa = torch.exp(-level), (1 + torch.exp(2 * level)).rsqrt()
            c = torch.cat([context[:, :-1], level[:, None]], 1)
            drift, spread = size / 2 * torch.exp(2 * offset), size**0.5 * torch.exp(offset)
            for _ in range(stages.steps):
                z = torch.randn_like(y) if noise is None else noise(step)
                v = kappa * y
                r = score(rows._replace(context=c, x=squash * torch.asinh(v / squash)))
                y = y + drift * (kappa * (rho * r - v)) + spread * z
                step += 1
    return y


def langevin_step(rows: Rows, scalar_weight: Tensor, z: Tensor, drift: Tensor, spread: Tensor) -> Tensor:
    """One step with the context's share of the first layer (N, H_1) already there, as the rows' context."""
    base, x, weights, biases, frequencies, activation = rows
    f = ACTIVATIONS[activation]
    if frequencies.numel():
        angles = x.unsqueeze(1) * frequencies
        h = torch.cat([x.unsqueeze(1), torch.sin(angles), torch.cos(angles)], 1)
        a = base + F.linear(h, scalar_weight)
    else:
        a = torch.addcmul(base, x.unsqueeze(1), scalar_weight.squeeze(1))
    return x + drift * layers(f(a), weights[1:], biases[1:], activation) + spread * z


def langevin_hoisted(
    rows: Rows,
    stages: Stages,
    noise: Noise | None = None,
    step_function: Callable[..., Tensor] = langevin_step,
) -> Tensor:
    """:func:`langevin_loop` with the product of W_1 and the context taken out of the loop.

    The most that stays plain PyTorch: what does not change between steps is computed once per stage.
    ``step_function`` may be a compiled :func:`langevin_step`.
    """
    x, first, features, step = rows.x, rows.weights[0], rows.context.shape[1] + 1, 1
    with torch.no_grad():
        scalar_weight = first[:, features:].contiguous()
        shared = F.linear(rows.context, first[:, : features - 1], rows.biases[0])
        for size, scale, feature in zip(*stages[:3], strict=True):
            base = shared + cast(float, feature) * first[:, features - 1]
            drift, spread = x.new_tensor(size / 2 * scale), x.new_tensor(size**0.5)
            for _ in range(stages.steps):
                z = torch.randn_like(x) if noise is None else noise(step)
                x = step_function(rows._replace(context=base, x=x), scalar_weight, z, drift, spread)
                step += 1
    return x


class DrawLoop:
    """The straightforward draw: for every variable a whole forward pass, and one for every parameter set.

    Fair because autograd is off, the head's steps are those of :func:`langevin_loop`, and a network that
    serves several levels is run once a variable.

    Args:
        parts: of every parameter set in the order of the levels, the context network, x (B, D) -> (B, D, C);
            the head, as rows whose context and x do not matter; and the levels that it serves.
    """

    def __init__(self, parts: Sequence[tuple[nn.Module, Rows, Stages]]):
        self._parts = parts

    @torch.no_grad()
    def run(self, x: Tensor, variables: Sequence[int], noise: Callable[[int], Noise] | None = None) -> Tensor:
        """(B, len(variables)): those variables drawn, each given the ones before it in x (B, D).

        ``noise(d)`` of a variable replaces torch's generator.
        """
        columns = []
        for d in variables:
            draw = noise(d) if noise else None
            value = torch.randn_like(x[:, d]) if draw is None else draw(0)
            for part, (network, _, _) in enumerate(self._parts):
                value = self._part(part, network(x)[:, d], value, draw)
            columns.append(value)
        return torch.stack(columns, 1)

    @torch.no_grad()
    def truth(self, x: Tensor, variables: Sequence[int], noise: Callable[[int], Noise]) -> Tensor:
        """As :meth:`run`, in float64, all variables together."""
        draws = [noise(d) for d in variables]

        def draw(k: int) -> Tensor:
            return torch.stack([own(k).double() for own in draws], 1).flatten()

        value = draw(0)
        for part, (network, _, _) in enumerate(self._parts):
            context = copy.deepcopy(network).double()(x.double())[:, variables].flatten(0, 1)
            value = self._part(part, context, value, draw)
        return value.view(len(x), len(variables))

    def _part(self, part: int, context: Tensor, x: Tensor, draw: Noise | None) -> Tensor:
        _, head, stages = self._parts[part]
        before = sum(earlier.steps * len(earlier.step_sizes) for _, _, earlier in self._parts[:part])
        rows = head.to(x.dtype)._replace(context=context, x=x)
        return langevin_loop(rows, stages, None if draw is None else lambda k: draw(before + k))
