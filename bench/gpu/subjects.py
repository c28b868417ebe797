"""What is checked and timed: random heads, layers and models on its device."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import fastcsm
from fastcsm import functional, nn
from fastcsm.bench.baselines.head import Rows
from fastcsm.bench.micro.conditional_density import LEVEL
from fastcsm.bench.micro.rows import fused, restoring
from fastcsm.reference.preconditioning import SQUASH

#: Tiny sizes on the processor, Triton's kernels interpreted and the CPU library in the place of CUDA C++.
DRY = False
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "high"),
    "float16": (torch.float16, "high"),
}
Result = dict[str, Any]
#: Takes what a process has found so far.
Keep = Callable[[Result], None]


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


class Subject:
    """What has tensors and modules, all of them in another type by ``to``."""

    def to(self, dtype):
        def copied(value):
            if isinstance(value, torch.nn.Module):
                return copy.deepcopy(value).to(dtype)
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        other = copy.copy(self)
        vars(other).update(tree_map(copied, vars(self)))
        return other


class Head(Subject):
    """Random rows and a head on the device."""

    def __init__(self, rows, context=32, hidden=(128, 128), frequencies=0, activation="softplus", seed=0):
        torch.manual_seed(seed)
        sizes = [context + 1 + 2 * frequencies, *hidden, 1]
        self.rows = Rows(
            torch.randn(rows, context, device=device()),
            torch.randn(rows, device=device()),
            [torch.randn(o, i, device=device()) / i**0.5 for i, o in pairwise(sizes)],
            [0.3 * torch.randn(o, device=device()) for o in sizes[1:]],
            3 * torch.randn(frequencies, device=device()),
            activation,
        )

    def first(self, count):
        """The same head on some of the rows."""
        other = copy.copy(self)
        other.rows = self.rows._replace(context=self.rows.context[:count], x=self.rows.x[:count])
        return other

    def leaves(self):
        tensors = self.rows.context, *self.rows.weights, *self.rows.biases
        return [t.detach().requires_grad_() for t in tensors]

    def split(self, leaves):
        """The rows with the leaves in the place of what they are made of."""
        end = 1 + len(self.rows.weights)
        return self.rows._replace(context=leaves[0], weights=leaves[1:end], biases=leaves[end:])

    def loss(self, leaves):
        """The fused loss."""
        return fused(functional.csm_loss, self.split(leaves))


class LinearHead(Head):
    """A head on the contexts that a masked layer computes, as the last layer of a MADE does."""

    def __init__(self, batch, dimensions, units, context=32, hidden=(128, 128), seed=0):
        super().__init__(batch * dimensions, context, hidden, seed=seed)
        shapes = (batch, units), (dimensions * context, units), (dimensions * context,)
        self.layer = [torch.randn(shape, device=device()) / shape[-1] ** 0.5 for shape in shapes]
        into = 1 + torch.arange(units, device=device()) * max(dimensions - 1, 1) // units
        self.degrees = into, torch.arange(dimensions, device=device()).repeat_interleave(context)

    def leaves(self):
        return [*(t.detach().requires_grad_() for t in self.layer), *super().leaves()[1:]]

    def loss(self, leaves):
        x, weight, bias, *rest = leaves
        layer, head = (x, weight, bias, *self.degrees), self.split([self.rows.context, *rest])
        return functional.linear_csm_loss(
            *layer, head.x.view(len(x), -1), head.weights, head.biases, activation=head.activation
        )


class Conditional(Head):
    """A conditional head whose densities exist, with points and probabilities."""

    level: ClassVar[dict[str, Any]] = LEVEL
    squash: ClassVar[float | None] = None

    def __init__(self, rows, context=32, hidden=(128, 128), seed=0):
        super().__init__(rows, context, hidden, seed=seed)
        restoring(self.rows.weights, self.rows.biases)
        given = self.rows.context[:, :-1].contiguous()
        self.rows = self.rows._replace(context=given, x=0.2 * self.rows.x)
        self.u = torch.linspace(0.01, 0.99, rows, device=device())

    def density(self, leaves=None, inverse=False):
        rows = self.split(leaves) if leaves else self.rows
        rows = rows._replace(x=self.u) if inverse else rows
        return fused(functional.conditional_density, rows, inverse=inverse, squash=self.squash, **self.level)

    def flow(self, sigma_from, sigma_to):
        levels = {"sigma_from": sigma_from, "sigma_to": sigma_to}
        return fused(functional.probability_flow, self.rows, squash=self.squash, **levels)


class Preconditioned(Conditional):
    """A random preconditioned head, whose contexts end with -ln(tau), and rows so far out."""

    level: ClassVar[dict[str, Any]] = {"stage_feature": 0.0, "low": -4.0, "high": 4.0}
    squash = SQUASH

    def __init__(self, rows, context=32, hidden=(128, 128), distance=1.0, seed=0):
        Head.__init__(self, rows, context, hidden, seed=seed)
        self.rows = self.rows._replace(x=distance * self.rows.x)
        self.u = torch.linspace(0.01, 0.99, rows, device=device())


class Layer(Subject):
    """A masked layer with sorted degrees; a preactivation and an upstream gradient."""

    def __init__(self, batch, features, outputs, seed=0):
        torch.manual_seed(seed)
        shapes = (batch, features), (outputs, features), (outputs,), (batch, outputs), (batch, outputs)
        self.tensors = [torch.randn(shape, device=device()) for shape in shapes]
        self.tensors[1] /= features**0.5
        self.degrees = [
            torch.randint(0, 99, (n,), device=device()).sort().values for n in (features, outputs)
        ]

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


class Drawn(Subject):
    """A model to draw from; the reference draws with the same noise."""

    def __init__(
        self, features=13, hidden=(70, 90), head=(128, 128), levels=10, staged=False, residual=False, seed=0
    ):
        torch.manual_seed(seed)
        form = "staged" if staged else "conditional"
        made = nn.MADE(features, hidden, 32, activation="silu", residual=residual)
        score = nn.ScoreHead(32 + (not staged), head, "softplus", frequencies=0)
        self.model = nn.ARCSM(made, score, noise=nn.NoiseSchedule(1.0, 0.04, levels, form=form))
        self.model.to_stage((levels - 1) * staged)
        self.model.to(device()).eval()

    def sample(self, samples, steps=2):
        return self.model.sample(samples, method="langevin", steps=steps, seed=0)
