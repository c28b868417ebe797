"""score_head, csm_loss and langevin on rows: inputs, contenders, the float64 truth, counted operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional, random
from . import baselines
from .base import Case, Contender, Outputs, own_contenders, widths

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CsmLoss",
    "Langevin",
    "Rows",
    "ScoresOfRows",
    "head_numbers",
    "loss_operations",
    "step_operations",
]

SAMPLE_DIMENSIONS = 784


@dataclass(frozen=True)
class Rows(Case):
    """Sizes of a head on rows: N rows, C context features, hidden widths, activation, E frequencies."""

    rows: int = 50176
    context: int = 32
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "softplus"
    frequencies: int = 0

    def parameters(self) -> int:
        """Weights and biases of the head."""
        return head_numbers(self.context, self.hidden, self.frequencies)

    def title(self) -> str:
        extra = f", {self.frequencies} frequencies" if self.frequencies else ""
        head = f"head {widths(self.hidden)} {self.activation}{extra}"
        return f"{self.op}: N = {self.rows}, C = {self.context}, {head}"

    def matrix_shape(self) -> tuple[int, int, int]:
        return self.rows, max(self.hidden), max(self.hidden)

    def variants(self) -> list[Self]:
        return [self, replace(self, activation="silu", frequencies=16)]

    def suite(self) -> list[Self]:
        return [replace(case, rows=min(case.rows, 12544)) for case in self.variants()]

    def quick(self) -> Self:
        return replace(self, rows=min(self.rows, 4096))

    def warm(self) -> Self:
        return replace(self, rows=64)

    def _head(self) -> tuple[list[Tensor], list[Tensor], Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(0)
        widths = [self.context + 1 + 2 * self.frequencies, *self.hidden, 1]
        weights, biases = [], []
        for fan_in, fan_out in pairwise(widths):
            bound = fan_in**-0.5
            weights.append(torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator))
            biases.append(torch.empty(fan_out).uniform_(-bound, bound, generator=generator))
        return weights, biases, 3 * torch.randn(self.frequencies, generator=generator), generator


def head_numbers(context: int, hidden: Sequence[int], frequencies: int = 0) -> int:
    """Weights and biases of a head."""
    return sum((a + 1) * b for a, b in pairwise([context + 1 + 2 * frequencies, *hidden, 1]))


def score_operations(context: int, hidden: Sequence[int], frequencies: int) -> float:
    """Operations a row of (s, s')."""
    count = context * hidden[0] + 2 * sum(a * b for a, b in pairwise(hidden))
    return 2.0 * (count + (2 * (1 + 2 * frequencies) * hidden[0] if frequencies else 0))


def loss_operations(context: int, hidden: Sequence[int], frequencies: int) -> float:
    """Operations a row of the CSM loss with its backward pass."""
    count = 3 * context * hidden[0] + 6 * sum(a * b for a, b in pairwise(hidden))
    return 2.0 * (count + (4 * (1 + 2 * frequencies) * hidden[0] if frequencies else 0))


def denoising_operations(context: int, hidden: Sequence[int], frequencies: int) -> float:
    """Operations a row of a loss of s alone with its backward pass."""
    count = 3 * context * hidden[0] + 3 * sum(a * b for a, b in pairwise(hidden))
    return 2.0 * (count + (2 * (1 + 2 * frequencies) * hidden[0] if frequencies else 0))


def step_operations(hidden: Sequence[int], frequencies: int) -> float:
    """Operations a row and Langevin step, the context's part of the first layer left out."""
    count = sum(a * b for a, b in pairwise(hidden))
    return 2.0 * (count + ((1 + 2 * frequencies) * hidden[0] if frequencies else 0))


def _gradients(
    outputs: Sequence[Tensor],
    upstream: Sequence[Tensor],
    context: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Outputs:
    grads = torch.autograd.grad(outputs, [context, *weights, *biases], upstream)
    names = ["grad_context"]
    names += [f"grad_weights[{k}]" for k in range(len(weights))]
    names += [f"grad_biases[{k}]" for k in range(len(biases))]
    return dict(zip(names, grads, strict=True))


def _loss_and_gradients(
    loss: Tensor, context: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Outputs:
    grads = _gradients([loss], [torch.ones_like(loss)], context, weights, biases)
    return {"loss": loss.detach(), **grads}


@dataclass(frozen=True)
class CsmLoss(Rows):
    """csm_loss forward and backward: the loss and the gradients of context, weights and biases.

    The coefficients are those of the mean over samples of 784 dimensions: alpha = beta = 784 / N, gamma = 0;
    or, ``denoising``, alpha as before, beta = 0, and gamma = alpha times noise of its own a row.
    """

    dtype: str = "float32"
    denoising: bool = False

    op = "csm_loss"
    slow = ("compile_jvp",)

    def title(self) -> str:
        extra = ", denoising" if self.denoising else ""
        return super().title() + extra + ("" if self.dtype == "float32" else f", {self.dtype}")

    def variants(self) -> list[Self]:
        return [*super().variants(), replace(self, denoising=True)]

    def operations(self) -> float:
        """2 (3 C H_1 + 6 sum H_k H_{k+1}) a row, and 2 * 4 (1 + 2E) H_1 more with E frequencies.

        Denoising, 2 (3 C H_1 + 3 sum H_k H_{k+1}), and 2 * 2 (1 + 2E) H_1.
        """
        count = denoising_operations if self.denoising else loss_operations
        return self.rows * count(self.context, self.hidden, self.frequencies)

    def bytes(self) -> float:
        """c and x read, the gradient of c written; parameters read, their gradients written.

        Denoising reads gamma as well.
        """
        numbers = self.rows * (2 * self.context + 1 + self.denoising) + 2 * self.parameters()
        return float(getattr(torch, self.dtype).itemsize * numbers)

    def inputs(self) -> tuple[Any, ...]:
        dtype = getattr(torch, self.dtype)
        weights, biases, frequencies, generator = self._head()
        context = torch.randn(self.rows, self.context, generator=generator).to(dtype).requires_grad_()
        x = torch.randn(self.rows, generator=generator).to(dtype)
        weights, biases = ([t.to(dtype).requires_grad_() for t in tensors] for tensors in (weights, biases))
        frequencies = frequencies.to(dtype)
        alpha = beta = 1.0 / max(1, self.rows // SAMPLE_DIMENSIONS)
        gamma = None
        if self.denoising:
            wide = torch.float32 if dtype.itemsize < 4 else dtype
            beta, gamma = 0.0, alpha * torch.randn(self.rows, generator=generator).to(wide)
        return context, x, weights, biases, frequencies, self.activation, alpha, beta, gamma

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        inputs = self.inputs()
        context, x, weights, biases, frequencies, activation, alpha, beta, gamma = inputs

        def plain(loss_function: Callable[..., Tensor]) -> Callable[[], Outputs]:
            return lambda: _loss_and_gradients(loss_function(*inputs), context, weights, biases)

        def own() -> Outputs:
            loss = functional.csm_loss(
                context,
                x,
                weights,
                biases,
                activation=activation,
                frequencies=frequencies,
                alpha=alpha,
                beta=beta,
                gamma=gamma,
            )
            return _loss_and_gradients(loss, context, weights, biases)

        if self.denoising:
            found = {"eager": Contender("eager", plain(baselines.csm_denoising))}
            if compiled:
                function = torch.compile(baselines.csm_denoising, dynamic=False)
                found["compile"] = Contender("torch.compile", plain(function), compiled=True)
            return found | own_contenders(own, precisions if self.dtype == "float32" else ["highest"])
        found = {
            "double_backward": Contender("eager double backward", plain(baselines.csm_double_backward)),
            "tangent": Contender("hand-written tangent, eager", plain(baselines.csm_tangent)),
            "jvp": Contender("torch.func.jvp", plain(baselines.csm_jvp)),
        }
        if compiled:
            for name, function, label in (
                ("compile_tangent", baselines.csm_tangent, "torch.compile of the tangent"),
                ("compile_jvp", baselines.csm_jvp, "torch.compile of func.jvp"),
            ):
                found[name] = Contender(label, plain(torch.compile(function, dynamic=False)), compiled=True)
        if self.dtype != "float32":
            found |= own_contenders(own, ["highest"])
            return {name: replace(entry, limit=self._limit(name)) for name, entry in found.items()}
        if "medium" in precisions:
            found["double_backward_medium"] = Contender(
                'eager double backward, "medium"', plain(baselines.csm_double_backward), precision="medium"
            )
        return found | own_contenders(own, precisions)

    def _limit(self, name: str) -> float | None:
        """Of errors, where that of float32 does not fit; None: twice plain PyTorch's."""
        return 1e-10 if self.dtype == "float64" else 0.1 if name == "double_backward" else None

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        context, x, weights, biases, frequencies, activation, alpha, beta, gamma = self.inputs()
        weights, biases = ([t.detach().double().requires_grad_() for t in ts] for ts in (weights, biases))
        total: Outputs = {}
        context_grads, scale = [], 0.0
        gammas = (torch.zeros(self.rows) if gamma is None else gamma).double().split(4096)
        for c, v, g in zip(context.detach().split(4096), x.split(4096), gammas, strict=True):
            c = c.double().requires_grad_()
            arguments = (c, v.double(), weights, biases, frequencies.double(), activation)
            loss = baselines.csm_double_backward(*arguments, alpha, beta, g)
            part = _loss_and_gradients(loss, c, weights, biases)
            square = baselines.csm_double_backward(*arguments, alpha, 0.0).item()
            scale += square + abs(part["loss"].item() - square)
            context_grads.append(part.pop("grad_context"))
            total = {name: total[name] + value for name, value in part.items()} if total else part
        return {**total, "grad_context": torch.cat(context_grads)}, {"loss": scale}


@dataclass(frozen=True)
class ScoresOfRows(Rows):
    """score_head, float32: (s, s'), or also the gradients of context, weights and biases for an upstream."""

    backward: bool = False

    op = "score_head"

    def title(self) -> str:
        return f"{super().title()}, {'forward and backward' if self.backward else 'forward'}"

    def variants(self) -> list[Self]:
        return [replace(self, backward=False), replace(self, backward=True)]

    def operations(self) -> float:
        """2 (C H_1 + 2 sum H_k H_{k+1}) a row, 2 * 2 (1 + 2E) H_1 more with E frequencies; with the backward
        pass those of csm_loss."""
        count = loss_operations if self.backward else score_operations
        return self.rows * count(self.context, self.hidden, self.frequencies)

    def bytes(self) -> float:
        """c and x read, s and s' written; backward: upstreams read, gradients of c and parameters written."""
        numbers = self.rows * (self.context + 3) + self.parameters()
        return 4.0 * (numbers + (self.rows * (self.context + 2) + self.parameters() if self.backward else 0))

    def inputs(self) -> tuple[Any, ...]:
        weights, biases, frequencies, generator = self._head()
        context = torch.randn(self.rows, self.context, generator=generator)
        x = torch.randn(self.rows, generator=generator)
        for tensor in (context, *weights, *biases):
            tensor.requires_grad_(self.backward)
        return context, x, weights, biases, frequencies, self.activation

    def _upstream(self) -> tuple[Tensor, Tensor]:
        g, p = torch.randn(2, self.rows, generator=torch.Generator().manual_seed(1))
        return g, p

    def _call(self, scores: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Any, ...]) -> Outputs:
        context, _, weights, biases, *_ = inputs
        pair = scores(*inputs)
        found = dict(zip(("score", "derivative"), (part.detach() for part in pair), strict=True))
        if self.backward:
            upstream = [part.to(pair[0].dtype) for part in self._upstream()]
            found |= _gradients(pair, upstream, context, weights, biases)
        return found

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        inputs = self.inputs()

        def own(*arguments: Any) -> tuple[Tensor, Tensor]:
            *rows, frequencies, activation = arguments
            return functional.score_head(*rows, activation=activation, frequencies=frequencies)

        def of(scores: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Outputs]:
            return partial(self._call, scores, inputs)

        eager = partial(baselines.scores_double_backward, graph=self.backward)
        label = "eager double backward" if self.backward else "eager, autograd.grad"
        found = {
            "double_backward": Contender(label, of(eager)),
            "tangent": Contender("hand-written tangent, eager", of(baselines.scores_tangent)),
            "jvp": Contender("torch.func.jvp", of(baselines.scores_jvp)),
        }
        if compiled:
            tangent = torch.compile(baselines.scores_tangent, dynamic=False)
            found["compile_tangent"] = Contender("torch.compile of the tangent", of(tangent), compiled=True)
        return found | own_contenders(of(own), precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        context, x, weights, biases, frequencies, activation = self.inputs()
        weights, biases = (
            [t.detach().double().requires_grad_(self.backward) for t in ts] for ts in (weights, biases)
        )
        context = context.detach().double().requires_grad_(self.backward)
        wide = context, x.double(), weights, biases, frequencies.double(), activation
        return self._call(baselines.scores_tangent, wide), {}


@dataclass(frozen=True)
class Langevin(Rows):
    """langevin with the conditional head, float32: log sigma_i is the last context feature, s over sigma_i.

    ``levels`` geometric noise levels from 1 to 0.04, ``steps`` Langevin steps each, e_i = 0.2 sigma_i^2.
    """

    rows: int = 4096
    levels: int = 10
    steps: int = 20

    op = "langevin"

    def suite(self) -> list[Self]:
        return [replace(self, rows=rows) for rows in (64, 1024)]

    def quick(self) -> Self:
        return replace(self, rows=min(self.rows, 64))

    def title(self) -> str:
        return f"{super().title()}, {self.levels} x {self.steps} steps"

    def operations(self) -> float:
        """2 sum H_k H_{k+1} a row and step (2 (1 + 2E) H_1 more with E frequencies), 2 C H_1 once a row."""
        step = step_operations(self.hidden, self.frequencies)
        return self.rows * (self.levels * self.steps * step + 2.0 * self.context * self.hidden[0])

    def bytes(self) -> float:
        """c (without log sigma) and x read, the drawn x written; parameters read."""
        return 4.0 * (self.rows * (self.context + 1) + self.parameters())

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        weights, biases, frequencies, generator = self._head()
        context = torch.randn(self.rows, self.context - 1, generator=generator)
        x = torch.randn(self.rows, generator=generator)
        ratio = 0.04 ** (1 / max(1, self.levels - 1))
        sigmas = [ratio**i for i in range(self.levels)]
        schedule = {
            "step_sizes": [0.2 * sigma**2 for sigma in sigmas],
            "score_scales": [1 / sigma for sigma in sigmas],
            "stage_features": [math.log(sigma) for sigma in sigmas],
            "steps": self.steps,
        }
        return (context, x, weights, biases, frequencies, self.activation), schedule

    def _noise(self, dtype: torch.dtype) -> Callable[[int], Tensor]:
        samples, dimensions = torch.arange(self.rows), torch.zeros(self.rows, dtype=torch.int64)
        return lambda k: random.normal(0, samples, dimensions, k).to(dtype)

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        arguments, schedule = self.inputs()
        context, x, weights, biases, frequencies, activation = arguments

        def own() -> Outputs:
            result = functional.langevin(
                context,
                x,
                weights,
                biases,
                activation=activation,
                frequencies=frequencies,
                seed=0,
                **schedule,
            )
            return {"x": result}

        def plain(
            label: str, function: Callable[..., Tensor], compiled: bool = False, **options: Any
        ) -> Contender:
            def run(noise: Callable[[int], Tensor] | None = None) -> Outputs:
                return {"x": function(*arguments, **schedule, noise=noise, **options)}

            return Contender(label, run, compiled=compiled, check=lambda: run(self._noise(torch.float32)))

        found = {
            "loop": plain("eager loop", baselines.langevin_loop),
            "hoisted": plain("eager loop, context hoisted", baselines.langevin_hoisted),
        }
        if compiled:
            found["compile_hoisted"] = plain(
                "torch.compile of the hoisted step",
                baselines.langevin_hoisted,
                compiled=True,
                step_function=torch.compile(baselines.langevin_step, dynamic=False),
            )
        return found | own_contenders(own, precisions)

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        (context, x, weights, biases, frequencies, activation), schedule = self.inputs()
        wide = ([w.double() for w in weights], [b.double() for b in biases], frequencies.double(), activation)
        noise = self._noise(torch.float64)
        return {
            "x": baselines.langevin_loop(context.double(), x.double(), *wide, **schedule, noise=noise)
        }, {}
