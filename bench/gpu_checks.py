"""The checks of bench/gpu.py: every op against the reference in float64, at sizes about the edges of tiles.

A part is a function of a :class:`Plan` that returns plain values, among them "checks": what was found of each
backend and op.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastcsm
from fastcsm import backends, functional, nn
from fastcsm.benchmark.densities import SIGMA, restoring

DEVICE = "cuda"
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "high"),
    "float16": (torch.float16, "high"),
}
BACKENDS: dict[str, backends.Backend] = {"triton": backends.Triton(), "cuda": backends.CUDA()}
Calls = dict[str, Callable[[], Any]]
Result = dict[str, Any]


class Plan(NamedTuple):
    """What to run of a part: which backends, and how many rounds of timing; 0: check only."""

    backends: tuple[str, ...]
    rounds: int


class Head:
    """Random rows and a head on the device, as the baselines and ``functional`` take them."""

    def __init__(self, rows, context=32, hidden=(128, 128), frequencies=0, activation="softplus"):
        torch.manual_seed(0)
        sizes = [context + 1 + 2 * frequencies, *hidden, 1]
        self.context = torch.randn(rows, context, device=DEVICE)
        self.x = torch.randn(rows, device=DEVICE)
        self.weights = [torch.randn(o, i, device=DEVICE) / i**0.5 for i, o in pairwise(sizes)]
        self.biases = [0.3 * torch.randn(o, device=DEVICE) for o in sizes[1:]]
        self.frequencies = 3 * torch.randn(frequencies, device=DEVICE)
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
        return function(*self.split(leaves), self.frequencies, self.activation, 1.0, 1.0)

    def scores(self, leaves):
        s, ds = functional.score_head(
            *self.split(leaves), activation=self.activation, frequencies=self.frequencies
        )
        return (s * 0.7 + ds * 0.3).float().sum()

    def langevin(self, sizes, steps, seed=3):
        return functional.langevin(
            self.context,
            self.x,
            self.weights,
            self.biases,
            activation=self.activation,
            frequencies=self.frequencies,
            step_sizes=sizes,
            steps=steps,
            seed=seed,
        )


class LinearHead(Head):
    """A head on the contexts that a masked layer computes, as the last layer of a MADE does."""

    def __init__(self, batch, dimensions, units, context=32):
        super().__init__(batch * dimensions, context)
        shapes = (batch, units), (dimensions * context, units), (dimensions * context,)
        self.layer = [torch.randn(shape, device=DEVICE) / shape[-1] ** 0.5 for shape in shapes]
        into = 1 + torch.arange(units, device=DEVICE) * max(dimensions - 1, 1) // units
        self.degrees = into, torch.arange(dimensions, device=DEVICE).repeat_interleave(context)

    def leaves(self):
        return [t.detach().requires_grad_() for t in (*self.layer, *self.weights, *self.biases)]

    def loss(self, leaves):
        layers = len(self.weights)
        return functional.linear_csm_loss(
            *leaves[:3],
            *self.degrees,
            self.x.view(len(leaves[0]), -1),
            leaves[3 : 3 + layers],
            leaves[3 + layers :],
            activation=self.activation,
        )


class Conditional(Head):
    """A conditional head whose densities exist, with points and probabilities."""

    def __init__(self, rows, context=32, hidden=(128, 128)):
        super().__init__(rows, context, hidden)
        restoring(self.weights, self.biases)
        self.context = self.context[:, :-1].contiguous()
        self.x = 0.2 * self.x
        self.u = torch.linspace(0.01, 0.99, rows, device=DEVICE)

    def arguments(self):
        return self.context, self.x, self.weights, self.biases, self.frequencies, self.activation

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

    def gradient(self):
        leaves = self.leaves()
        return with_gradients(self.density(leaves).log_density.sum(), leaves)

    def flow(self, sigma_from, sigma_to):
        return functional.probability_flow(
            self.context,
            self.x,
            self.weights,
            self.biases,
            activation=self.activation,
            frequencies=self.frequencies,
            sigma_from=sigma_from,
            sigma_to=sigma_to,
        )


class Layer:
    """A masked layer with sorted degrees; a preactivation and an upstream gradient."""

    def __init__(self, batch, features, outputs):
        torch.manual_seed(0)
        shapes = (batch, features), (outputs, features), (outputs,), (batch, outputs), (batch, outputs)
        self.tensors = [torch.randn(shape, device=DEVICE) for shape in shapes]
        self.tensors[1] /= features**0.5
        self.degrees = [torch.randint(0, 99, (n,), device=DEVICE).sort().values for n in (features, outputs)]

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


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def on(backend: str, call: Callable[[], Any]) -> Any:
    with fastcsm.backend(backend):
        return call()


def checked(name: str, check: Callable[[], Result]) -> Result:
    """What ``check`` finds of a backend, or {"refused": why the backend does not run it}."""
    try:
        return on(name, check)
    except RuntimeError as error:
        if f"backend {name!r} cannot run" not in str(error):
            raise
        return {"refused": str(error)}


def deviation(got: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> dict[str, Any]:
    """Errors relative to each norm, pooled, as a few elements of plain PyTorch may be right by chance.

    At most twice those of plain PyTorch in the same dtype, and 4 units of rounding, are allowed.
    """
    error = allowed = units = 0.0
    for g, p, e in zip(got, plain, exact, strict=True):
        size = e.norm().item() or 1.0
        error += ((g.double() - e).norm().item() / size) ** 2
        allowed += ((p.double() - e).norm().item() / size) ** 2
        units += torch.finfo(g.dtype).eps ** 2
    ratio = error**0.5 / (2 * allowed**0.5 + 4 * units**0.5)
    return {"error_over_allowed": ratio, "passed": ratio <= 1.0}


def compared(run: Callable[[Any], list[Tensor]], subject: Any, dtype: torch.dtype) -> Result:
    """``run`` of the backend in force against the reference, in ``dtype`` and in float64."""
    low = subject.to(dtype)
    exact = on("reference", lambda: run(low.to(torch.float64)))
    plain = on("reference", lambda: run(low))
    got, again = run(low), run(low)
    found = deviation(got, plain, exact)
    found["deterministic"] = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    return found


def within_estimate(head: Conditional, dtype: torch.dtype) -> Result:
    """Log-densities and probabilities in ``dtype``: no further from float64 than the estimated errors say."""
    low = head.to(dtype)
    exact = on("reference", lambda: low.to(torch.float64).density())
    got, again = low.density(), low.density()
    estimate = got.error.double() + exact.error
    pairs = (got.log_density, exact.log_density), (got.cdf, exact.cdf)
    ratio = max(((a.double() - b).abs() / estimate).max().item() for a, b in pairs)
    same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    return {"error_over_allowed": ratio, "passed": ratio <= 1.0, "deterministic": same}


def losses(head: Head) -> list[Tensor]:
    leaves = head.leaves()
    return with_gradients(head.loss(leaves), leaves)


def scores(head: Head) -> list[Tensor]:
    leaves = head.leaves()
    return with_gradients(head.scores(leaves), leaves)


def check_head(rows: int, hidden: tuple[int, ...], frequencies: int, activation: str) -> Calls:
    head = Head(rows, 32, hidden, frequencies, activation)
    return {
        "csm_loss": partial(compared, losses, head),
        "score_head": partial(compared, scores, head),
        "langevin": partial(compared, lambda h: [h.langevin([0.02], 5)], head),
    }


def check_conditional(rows: int, hidden: tuple[int, ...]) -> Calls:
    head = Conditional(rows, 32, hidden)
    runs: dict[str, Callable[[Any], list[Tensor]]] = {
        "conditional_density quantile": lambda h: [h.density(inverse=True).point],
        "conditional_density gradient": Conditional.gradient,
        "probability_flow": lambda h: [*h.flow(SIGMA, 1.0)[:2]],
        "probability_flow back": lambda h: [h.flow(1.0, SIGMA).point],
    }
    checks: Calls = {name: partial(compared, run, head) for name, run in runs.items()}
    return {"conditional_density": partial(within_estimate, head)} | checks


def check_layer(batch: int, features: int, outputs: int) -> Calls:
    return {"masked_linear": partial(compared, Layer.run, Layer(batch, features, outputs))}


def check_draw(samples: int, **options: Any) -> Calls:
    return {"langevin_draw": partial(compared, lambda d: [d.sample(samples)], Drawn(**options))}


class Drawn:
    """A model to draw from; the reference draws with the same noise."""

    def __init__(self, features=13, hidden=(70, 90), staged=False, residual=False):
        torch.manual_seed(0)
        form = "staged" if staged else "conditional"
        made = nn.MADE(features, hidden, 32, activation="silu", residual=residual)
        head = nn.ScoreHead(32 + (not staged), (128, 128), "softplus", frequencies=0)
        self.model = nn.ARCSM(made, head, noise=nn.NoiseSchedule(1.0, 0.04, 10, form=form))
        for _ in range(9 * staged):
            self.model.advance_stage()
        self.model.to(DEVICE).eval()

    def to(self, dtype):
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).to(dtype)
        return other

    def sample(self, samples, steps=2):
        return self.model.sample(samples, method="langevin", steps=steps, seed=0)


SUBJECTS: dict[str, Callable[[], Calls]] = {
    "4097 rows, 2 x 128 softplus": partial(check_head, 4097, (128, 128), 0, "softplus"),
    "1000 rows, 2 x 128 silu, 16 frequencies": partial(check_head, 1000, (128, 128), 16, "silu"),
    "65 rows, 17 and 9 tanh, 3 frequencies": partial(check_head, 65, (17, 9), 3, "tanh"),
    "129 rows, 130 and 257 gelu": partial(check_head, 129, (130, 257), 0, "gelu"),
    "300 rows, 4 layers elu, 2 frequencies": partial(check_head, 300, (32, 48, 64, 16), 2, "elu"),
    "density, 1000 rows, 2 x 128": partial(check_conditional, 1000, (128, 128)),
    "density, 17 rows, 70 and 130": partial(check_conditional, 17, (70, 130)),
    "density, 65 rows, 5": partial(check_conditional, 65, (5,)),
    "density, 33 rows, 4 layers": partial(check_conditional, 33, (8, 24, 15, 31)),
    "layer 1024 x 784 x 512": partial(check_layer, 1024, 784, 512),
    "layer 65 x 300 x 129": partial(check_layer, 65, 300, 129),
    "layer 1 x 1 x 1": partial(check_layer, 1, 1, 1),
    "draw, conditional": partial(check_draw, 37),
    "draw, staged, residual": partial(check_draw, 17, staged=True, residual=True, hidden=(70, 70)),
}


def check(precision: str, subject: str, plan: Plan) -> Result:
    """Every op that a subject has, at a size about the edges of tiles."""
    dtype, setting = PRECISIONS[precision]
    torch.set_float32_matmul_precision(setting)
    calls = SUBJECTS[subject]().items()
    return {
        "checks": {
            f"{name} {op}": checked(name, partial(run, dtype)) for name in plan.backends for op, run in calls
        }
    }


#: Every subject in every precision.
CHECKS: dict[str, Callable[[Plan], Result]] = {
    f"check {precision}: {subject}": partial(check, precision, subject)
    for precision in PRECISIONS
    for subject in SUBJECTS
}
