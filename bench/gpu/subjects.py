"""What is checked and timed: random heads, layers and models on its device."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastcsm
from fastcsm import functional, nn
from fastcsm.bench.baselines.head import Rows
from fastcsm.bench.micro.conditional_density import SIGMA
from fastcsm.bench.micro.rows import restoring

#: Tiny sizes on the processor, Triton's kernels interpreted and the CPU library in the place of CUDA C++.
DRY = False
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "high"),
    "float16": (torch.float16, "high"),
}
Result = dict[str, Any]


class Plan(NamedTuple):
    """Which backends a process runs, and how many rounds of timing."""

    backends: tuple[str, ...]
    rounds: int


def device() -> str:
    return "cpu" if DRY else "cuda"


def stand_in(backend: str) -> str:
    """The backend, or the one that a dry run takes in its place."""
    return "cpu" if DRY and backend == "cuda" else backend


def on(backend: str, call: Callable[[], Any]) -> Any:
    with fastcsm.backend(stand_in(backend)):
        return call()


def refused(error: Exception) -> bool:
    """Whether a backend says that it does not run a call."""
    return isinstance(error, RuntimeError) and " cannot run " in str(error)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def set_precision(name: str) -> torch.dtype:
    """Sets torch's precision of float32 products; the dtype."""
    dtype, setting = PRECISIONS[name]
    torch.set_float32_matmul_precision(setting)
    return dtype


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


class Head:
    """Random rows and a head on the device, as the baselines and ``functional`` take them."""

    def __init__(self, rows, context=32, hidden=(128, 128), frequencies=0, activation="softplus", seed=0):
        torch.manual_seed(seed)
        sizes = [context + 1 + 2 * frequencies, *hidden, 1]
        self.context = torch.randn(rows, context, device=device())
        self.x = torch.randn(rows, device=device())
        self.weights = [torch.randn(o, i, device=device()) / i**0.5 for i, o in pairwise(sizes)]
        self.biases = [0.3 * torch.randn(o, device=device()) for o in sizes[1:]]
        self.frequencies = 3 * torch.randn(frequencies, device=device())
        self.activation, self.hidden = activation, hidden

    def to(self, dtype):
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.to(dtype))
            elif isinstance(value, list):
                setattr(other, name, [item.to(dtype) for item in value])
        return other

    def first(self, rows):
        """The same head on some of the rows."""
        other = copy.copy(self)
        other.context, other.x = self.context[:rows], self.x[:rows]
        return other

    def leaves(self):
        return [t.detach().requires_grad_() for t in (self.context, *self.weights, *self.biases)]

    def split(self, leaves):
        layers = len(self.weights)
        return leaves[0], self.x, leaves[1 : 1 + layers], leaves[1 + layers :]

    def loss(self, leaves):
        """The fused loss."""
        return functional.csm_loss(
            *self.split(leaves), activation=self.activation, frequencies=self.frequencies
        )

    def baseline(self, function, leaves):
        return function(Rows(*self.split(leaves), self.frequencies, self.activation), 1.0, 1.0)

    def run(self, function, **options):
        """A function of ``functional`` on the rows and the head."""
        head = {"activation": self.activation, "frequencies": self.frequencies}
        return function(self.context, self.x, self.weights, self.biases, **head, **options)

    def langevin(self, sizes, steps, seed=3):
        return self.run(functional.langevin, step_sizes=sizes, steps=steps, seed=seed)


class LinearHead(Head):
    """A head on the contexts that a masked layer computes, as the last layer of a MADE does."""

    def __init__(self, batch, dimensions, units, context=32, hidden=(128, 128), seed=0):
        super().__init__(batch * dimensions, context, hidden, seed=seed)
        shapes = (batch, units), (dimensions * context, units), (dimensions * context,)
        self.layer = [torch.randn(shape, device=device()) / shape[-1] ** 0.5 for shape in shapes]
        into = 1 + torch.arange(units, device=device()) * max(dimensions - 1, 1) // units
        self.degrees = into, torch.arange(dimensions, device=device()).repeat_interleave(context)

    def leaves(self):
        return [t.detach().requires_grad_() for t in (*self.layer, *self.weights, *self.biases)]

    def loss(self, leaves):
        x, weight, bias, *head = leaves
        weights, biases = head[: len(self.weights)], head[len(self.weights) :]
        layer = x, weight, bias, *self.degrees
        return functional.linear_csm_loss(
            *layer, self.x.view(len(x), -1), weights, biases, activation=self.activation
        )


class Conditional(Head):
    """A conditional head whose densities exist, with points and probabilities."""

    def __init__(self, rows, context=32, hidden=(128, 128), seed=0):
        super().__init__(rows, context, hidden, seed=seed)
        restoring(self.weights, self.biases)
        self.context = self.context[:, :-1].contiguous()
        self.x = 0.2 * self.x
        self.u = torch.linspace(0.01, 0.99, rows, device=device())

    def arguments(self):
        return Rows(self.context, self.x, self.weights, self.biases, self.frequencies, self.activation)

    def density(self, leaves=None, inverse=False):
        context, x, weights, biases = self.split(leaves or [self.context, *self.weights, *self.biases])
        return functional.conditional_density(
            context,
            self.u if inverse else x,
            weights,
            biases,
            activation=self.activation,
            frequencies=self.frequencies,
            low=-1.2,
            high=1.2,
            score_scale=1 / SIGMA,
            stage_feature=math.log(SIGMA),
            inverse=inverse,
        )

    def flow(self, sigma_from, sigma_to):
        return self.run(functional.probability_flow, sigma_from=sigma_from, sigma_to=sigma_to)


class Layer:
    """A masked layer with sorted degrees; a preactivation and an upstream gradient."""

    def __init__(self, batch, features, outputs, seed=0):
        torch.manual_seed(seed)
        shapes = (batch, features), (outputs, features), (outputs,), (batch, outputs), (batch, outputs)
        self.tensors = [torch.randn(shape, device=device()) for shape in shapes]
        self.tensors[1] /= features**0.5
        self.degrees = [
            torch.randint(0, 99, (n,), device=device()).sort().values for n in (features, outputs)
        ]

    def to(self, dtype):
        other = copy.copy(self)
        other.tensors = [t.to(dtype) for t in self.tensors]
        return other

    def run(self):
        leaves = [t.detach().requires_grad_() for t in self.tensors[:3]]
        y = functional.masked_linear(*leaves, *self.degrees, activation="silu")
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    def forward(self):
        return [functional.masked_linear(*self.tensors[:3], *self.degrees, activation="silu")]

    def backward(self):
        x, weight, _, a, upstream = self.tensors
        layer = upstream, a, x, weight, *self.degrees
        return list(torch.ops.fastcsm.masked_linear_backward(*layer, "silu", True, True, True))

    def edges(self):
        into, out = self.degrees
        return int((into <= out[:, None]).sum())


class Drawn:
    """A model to draw from; the reference draws with the same noise."""

    def __init__(
        self, features=13, hidden=(70, 90), head=(128, 128), levels=10, staged=False, residual=False, seed=0
    ):
        torch.manual_seed(seed)
        form = "staged" if staged else "conditional"
        made = nn.MADE(features, hidden, 32, activation="silu", residual=residual)
        score = nn.ScoreHead(32 + (not staged), head, "softplus", frequencies=0)
        self.model = nn.ARCSM(made, score, noise=nn.NoiseSchedule(1.0, 0.04, levels, form=form))
        for _ in range((levels - 1) * staged):
            self.model.advance_stage()
        self.model.to(device()).eval()

    def to(self, dtype):
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).to(dtype)
        return other

    def sample(self, samples, steps=2):
        return self.model.sample(samples, method="langevin", steps=steps, seed=0)
