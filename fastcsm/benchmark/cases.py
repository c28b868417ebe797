"""The two measured ops: their inputs, their contenders, the float64 truth and the counted operations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import functional, random
from . import baselines

__all__ = ["CASES", "Case", "Contender", "CsmLoss", "Langevin"]

Outputs = dict[str, Tensor]

SAMPLE_DIMENSIONS = 784


@dataclass(frozen=True)
class Contender:
    """One implementation of a case.

    Attributes:
        label: what tables call it.
        call: runs it once on the case's inputs and returns every output by name.
        precision: float32 matrix precision it runs under.
        compiled: True if its first call compiles for the sizes at hand.
        own: True for fastcsm itself.
        check: compared with the float64 truth in place of ``call``, where the timed call draws its own noise.
    """

    label: str
    call: Callable[[], Outputs]
    precision: str = "highest"
    compiled: bool = False
    own: bool = False
    check: Callable[[], Outputs] | None = None


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement: N rows, C context features, hidden widths, activation, E frequencies."""

    rows: int = 50176
    context: int = 32
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "softplus"
    frequencies: int = 0

    op = ""

    def config(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    def title(self) -> str:
        widths = " x ".join(map(str, self.hidden))
        if len(set(self.hidden)) == 1:
            widths = f"{len(self.hidden)} x {self.hidden[0]}"
        extra = f", {self.frequencies} frequencies" if self.frequencies else ""
        return f"{self.op}: N = {self.rows}, C = {self.context}, head {widths} {self.activation}{extra}"

    def operations(self) -> float:
        """Floating-point operations in matrix products that the op cannot do without."""
        raise NotImplementedError

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        """By name; the first is the baseline that ratios refer to, and plain PyTorch for the check."""
        raise NotImplementedError

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        """Outputs in float64, and the scale of errors where it is not the output's own norm."""
        raise NotImplementedError

    def _head(self) -> tuple[list[Tensor], list[Tensor], Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(0)
        widths = [self.context + 1 + 2 * self.frequencies, *self.hidden, 1]
        weights, biases = [], []
        for fan_in, fan_out in pairwise(widths):
            bound = fan_in**-0.5
            weights.append(torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator))
            biases.append(torch.empty(fan_out).uniform_(-bound, bound, generator=generator))
        return weights, biases, 3 * torch.randn(self.frequencies, generator=generator), generator


def _gradients(loss: Tensor, context: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Outputs:
    grads = torch.autograd.grad(loss, [context, *weights, *biases])
    names = ["grad_context"]
    names += [f"grad_weights[{k}]" for k in range(len(weights))]
    names += [f"grad_biases[{k}]" for k in range(len(biases))]
    return {"loss": loss.detach(), **dict(zip(names, grads, strict=True))}


@dataclass(frozen=True)
class CsmLoss(Case):
    """csm_loss forward and backward: the loss and the gradients of context, weights and biases, float32.

    The coefficients are those of the mean over samples of 784 dimensions: alpha = beta = 784 / N, gamma = 0.
    """

    op = "csm_loss"

    def operations(self) -> float:
        """2 (3 C H_1 + 6 sum H_k H_{k+1}) a row, and 2 * 4 (1 + 2E) H_1 more with E frequencies."""
        h = self.hidden
        count = 3 * self.context * h[0] + 6 * sum(a * b for a, b in pairwise(h))
        if self.frequencies:
            count += 4 * (1 + 2 * self.frequencies) * h[0]
        return 2.0 * count * self.rows

    def inputs(self) -> tuple[Any, ...]:
        weights, biases, frequencies, generator = self._head()
        context = torch.randn(self.rows, self.context, generator=generator).requires_grad_()
        x = torch.randn(self.rows, generator=generator)
        for tensor in (*weights, *biases):
            tensor.requires_grad_()
        coefficient = 1.0 / max(1, self.rows // SAMPLE_DIMENSIONS)
        return context, x, weights, biases, frequencies, self.activation, coefficient, coefficient

    def contenders(self, precisions: Sequence[str], compiled: bool) -> dict[str, Contender]:
        inputs = self.inputs()
        context, x, weights, biases, frequencies, activation, alpha, beta = inputs

        def plain(loss_function: Callable[..., Tensor]) -> Callable[[], Outputs]:
            return lambda: _gradients(loss_function(*inputs), context, weights, biases)

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
            )
            return _gradients(loss, context, weights, biases)

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
        if "medium" in precisions:
            found["double_backward_medium"] = Contender(
                'eager double backward, "medium"', plain(baselines.csm_double_backward), precision="medium"
            )
        for precision in precisions:
            suffix, quoted = ("", "") if precision == "highest" else (f"_{precision}", f', "{precision}"')
            found[f"fastcsm{suffix}"] = Contender(f"fastcsm{quoted}", own, precision=precision, own=True)
        return found

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        context, x, weights, biases, frequencies, activation, alpha, beta = self.inputs()
        weights, biases = ([t.detach().double().requires_grad_() for t in ts] for ts in (weights, biases))
        total: Outputs = {}
        context_grads, scale = [], 0.0
        for c, v in zip(context.detach().split(4096), x.split(4096), strict=True):
            c = c.double().requires_grad_()
            arguments = (c, v.double(), weights, biases, frequencies.double(), activation)
            part = _gradients(baselines.csm_double_backward(*arguments, alpha, beta), c, weights, biases)
            square = baselines.csm_double_backward(*arguments, alpha, 0.0).item()
            scale += square + abs(part["loss"].item() - square)
            context_grads.append(part.pop("grad_context"))
            total = {name: total[name] + value for name, value in part.items()} if total else part
        return {**total, "grad_context": torch.cat(context_grads)}, {"loss": scale}


@dataclass(frozen=True)
class Langevin(Case):
    """langevin with the conditional head, float32: log sigma_i is the last context feature, s over sigma_i.

    ``levels`` geometric noise levels from 1 to 0.04, ``steps`` Langevin steps each, e_i = 0.2 sigma_i^2.
    """

    rows: int = 4096
    levels: int = 10
    steps: int = 20

    op = "langevin"

    def title(self) -> str:
        return f"{super().title()}, {self.levels} x {self.steps} steps"

    def operations(self) -> float:
        """2 sum H_k H_{k+1} a row and step (2 (1 + 2E) H_1 more with E frequencies), 2 C H_1 once a row."""
        h = self.hidden
        count = sum(a * b for a, b in pairwise(h))
        if self.frequencies:
            count += (1 + 2 * self.frequencies) * h[0]
        return 2.0 * self.rows * (self.levels * self.steps * count + self.context * h[0])

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
        for precision in precisions:
            suffix, quoted = ("", "") if precision == "highest" else (f"_{precision}", f', "{precision}"')
            found[f"fastcsm{suffix}"] = Contender(f"fastcsm{quoted}", own, precision=precision, own=True)
        return found

    def reference(self) -> tuple[Outputs, dict[str, float]]:
        (context, x, weights, biases, frequencies, activation), schedule = self.inputs()
        wide = ([w.double() for w in weights], [b.double() for b in biases], frequencies.double(), activation)
        noise = self._noise(torch.float64)
        return {
            "x": baselines.langevin_loop(context.double(), x.double(), *wide, **schedule, noise=noise)
        }, {}


CASES: Mapping[str, type[Case]] = {"csm_loss": CsmLoss, "langevin": Langevin}
