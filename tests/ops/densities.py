"""Heads whose density is known, and random heads that have one."""

import math

import numpy as np
import torch
from scipy import special
from support import Case, split

import fastcsm
from fastcsm import functional
from fastcsm.reference.score_head import score_head


class Known:
    """Rows of a head with one context feature, its mean, and the law of x given the context."""

    def __init__(self, layers, activation, logpdf, cdf, scale):
        self.activation, self._logpdf, self._cdf = activation, logpdf, cdf
        self.weights = [torch.tensor(w, dtype=torch.float64) for w, _ in layers]
        self.biases = [torch.tensor(b, dtype=torch.float64) for _, b in layers]
        mean = np.array([-0.3, 0.0, 0.1, 0.4])[:, None]
        offset = scale * np.linspace(-4, 4, 41)[None]
        self.context = torch.tensor((mean + 0 * offset).reshape(-1, 1))
        self.x = torch.tensor((mean + offset).reshape(-1))

    def logpdf(self, context, x):
        return torch.tensor(self._logpdf((x - context[:, 0]).numpy()))

    def cdf(self, context, x):
        return torch.tensor(self._cdf((x - context[:, 0]).numpy()))


def gaussian(sd):
    """s = -z / sd^2, z = silu(z) - silu(-z)."""
    k = 1 / sd**2
    layers = [([[-1.0, 1.0], [1.0, -1.0]], [0.0, 0.0]), ([[-k, k]], [0.0])]

    def logpdf(z):
        return -0.5 * (z / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)

    return Known(layers, "silu", logpdf, lambda z: special.ndtr(z / sd), sd)


def logistic(b):
    """s = -tanh(z / 2b) / b: exponential tails."""
    layers = [([[-0.5 / b, 0.5 / b]], [0.0]), ([[-1 / b]], [0.0])]

    def logpdf(z):
        return -np.abs(z) / b - 2 * np.log1p(np.exp(-np.abs(z) / b)) - math.log(b)

    return Known(layers, "tanh", logpdf, lambda z: special.expit(z / b), 4 * b)


def mixture(m, sd, e=0.05):
    """Two modes at -m and m: s = m / sd^2 tanh(m z / sd^2) - tanh(e z) / (e sd^2).

    log q is exact but for its constant, a sum over equal steps, which converges beyond all powers.
    """
    k = m / sd**2
    layers = [([[-k, k], [-e, e]], [0.0, 0.0]), ([[k, -1 / (e * sd**2)]], [0.0])]

    def log_cosh(z):
        return np.abs(z) + np.log1p(np.exp(-2 * np.abs(z))) - math.log(2)

    def potential(z):
        return log_cosh(k * z) - log_cosh(e * z) / (e * sd) ** 2

    grid = np.linspace(-m - 14 * sd, m + 14 * sd, 400001)
    weight = np.exp(potential(grid) - potential(grid).max())
    step = grid[1] - grid[0]
    log_z = potential(grid).max() + math.log(weight.sum() * step)
    below = (weight.cumsum() - weight / 2) / weight.sum()
    return Known(
        layers,
        "tanh",
        lambda z: potential(z) - log_z,
        lambda z: np.interp(z, grid, below),
        (m + 4 * sd) / 4,
    )


def laplace(b):
    """s = -sign(z) / b, by a difference of relus steeper than any panel."""
    k = 1e9
    layers = [([[-k, k], [-k, k]], [0.5, -0.5]), ([[-2 / b, 2 / b]], [1 / b])]

    def logpdf(z):
        return -np.abs(z) / b - math.log(2 * b)

    def cdf(z):
        return np.where(z < 0, 0.5 * np.exp(-np.abs(z) / b), 1 - 0.5 * np.exp(-np.abs(z) / b))

    return Known(layers, "relu", logpdf, cdf, 2 * b)


KNOWN = {
    "gaussian": lambda: gaussian(0.1),
    "narrow gaussian": lambda: gaussian(3e-3),
    "logistic": lambda: logistic(0.07),
    "two modes": lambda: mixture(0.4, 0.1),
    "laplace": lambda: laplace(0.1),
}


class Restoring(Case):
    """A random head that falls with x, crossing zero: a density exists for every row.

    All weights on the way of x are positive but those of the output, and its bias balances the mean at x = 0.
    """

    def __init__(self, steepness=6.0, **settings):
        super().__init__(**settings)
        features = self.weights[0].shape[1] - self.context.shape[1]
        first = self.weights[0][:, -features:]
        first[:, 0] = steepness * (0.5 + first[:, 0].abs())
        first[:, 1:] *= 0.1
        self.weights[1:-1] = [weight.abs() for weight in self.weights[1:-1]]
        self.weights[-1] = -8 * self.weights[-1].abs() - 2
        self.x = self.x / 4
        zero = torch.zeros_like(self.x)
        s, _ = score_head(self.context, zero, self.weights, self.biases, self.frequencies, self.activation)
        if len(s) > 0:
            self.biases[-1] = self.biases[-1] - s.mean()


class Waves(Case):
    """s = -k x + the sum of a_i sin(w_i x), a in (0, size), by relus: rows without a context."""

    def __init__(self, k, size, frequencies, seed=0):
        super().__init__(
            rows=1, context=0, hidden=(frequencies + 2,), frequencies=frequencies, activation="relu"
        )
        generators = [torch.Generator().manual_seed(seed + n) for n in (0, 100)]
        w = 3 * torch.randn(frequencies, generator=generators[0], dtype=torch.float64)
        a = size * torch.rand(frequencies, generator=generators[1], dtype=torch.float64)
        first, last = torch.zeros_like(self.weights[0]), torch.zeros_like(self.weights[1])
        first[0, 0], first[1, 0], last[0, 0], last[0, 1] = 1.0, -1.0, -k, k
        first[2:, 1 : frequencies + 1], last[0, 2:] = torch.eye(frequencies), a
        offset = torch.tensor([0.0, 0.0] + [2.0] * frequencies, dtype=torch.float64)
        self.frequencies, self.weights, self.biases = w, [first, last], [offset, -(last @ offset)]
        self._potential = lambda x: -0.5 * k * x**2 - (a / w * torch.cos(w * x[:, None])).sum(1)
        grid = torch.linspace(-300, 300, 600001, dtype=torch.float64)
        self._log_z = self._potential(grid).logsumexp(0) + math.log(1e-3)

    def at(self, x):
        """The head with these rows."""
        self.context, self.x = x.new_empty(len(x), 0), x
        return self

    def logpdf(self, x):
        return self._potential(x) - self._log_z


def density(case, backend="auto", point=None, **settings):
    own = "stage_feature" in settings and "squash" not in settings
    context = case.context[:, :-1] if own else case.context
    with fastcsm.backend(backend):
        return functional.conditional_density(
            context,
            case.x if point is None else point,
            case.weights,
            case.biases,
            activation=case.activation,
            frequencies=case.frequencies,
            **({"low": -1.0, "high": 1.0} | settings),
        )


def gradients(case, backend="auto", upstream=1.0, **settings):
    """Of the sum of log densities, each times ``upstream``, by name of a leaf; no ``stage_feature`` but with
    ``squash``."""
    leaves = case.leaves()
    context, x, weights, biases = split(leaves)
    head = {"activation": case.activation, "frequencies": case.frequencies}
    with fastcsm.backend(backend):
        q = functional.conditional_density(
            context, x, weights, biases, **head, **({"low": -1.0, "high": 1.0} | settings)
        ).log_density
        return dict(zip(leaves, torch.autograd.grad((upstream * q).sum(), list(leaves.values()))))


def known(name, backend, dtype, inverse=False, every=1, **settings):
    """The law, its rows in a dtype (or each ``every``-th of them), and what the op says of them."""
    case = KNOWN[name]()
    context, x = case.context[::every].to(dtype), case.x[::every].to(dtype)
    if inverse:
        x = torch.linspace(1e-4, 1 - 1e-4, len(x), dtype=dtype)
    layers = [[p.to(dtype) for p in part] for part in (case.weights, case.biases)]
    with fastcsm.backend(backend):
        found = functional.conditional_density(
            context, x, *layers, activation=case.activation, low=-1.0, high=1.0, inverse=inverse, **settings
        )
    return case, context.double(), x.double(), functional.Density._make(v.double() for v in found)


def names(dtype):
    """A jump of s needs relus so steep that float32 cannot take their difference."""
    return [name for name in KNOWN if dtype is torch.float64 or name != "laplace"]
