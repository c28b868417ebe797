"""Heads, rows and the accuracy rule that all op tests share."""

import math
from itertools import pairwise

import pytest
import torch

from fastcsm import backends
from fastcsm.activations import ACTIVATIONS
from fastcsm.reference.score_head import score_head as reference_score_head

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
HIDDEN = [(5,), (17, 9), (33, 16, 7), (8, 24, 15, 31)]
ROWS = [0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 1000]
NAMES = list(ACTIVATIONS)
SEEDS = range(8)
_missing = backends.CPU().missing()
ISAS = (
    [pytest.param(None, marks=pytest.mark.skip(reason="; ".join(_missing)))]
    if _missing
    else torch.ops.fastcsm_cpu.isas()
)


def backend_params(op, *names):
    """The reference, and compiled backends by name, "cpu" by default; missing ones skip and say why."""
    params = ["reference"]
    for name in names or ("cpu",):
        request = backends.Request("cpu", torch.float32, (8, 1))
        with backends.backend(name):
            reasons = backends.registry.why_not(backends.registry.known[name], op, request)
        marks = [pytest.mark.skip(reason="; ".join(reasons))] if reasons else []
        params.append(pytest.param(name, marks=marks))
    return params


def triton_cases():
    """Settings of Case for every activation, at the edges of tiles; few, as the interpreter is slow."""
    rows = (130, 63, 64, 65, 1, 17, 0)
    contexts = (16, 70, 0, 1, 15, 17, 33)
    frequencies = (3, 0, 17, 1, 16, 0, 2)
    hidden = (*HIDDEN, (70, 130), (64, 64), (16,))
    for n, name in enumerate(NAMES):
        yield {
            "rows": rows[n],
            "context": contexts[n],
            "hidden": hidden[n],
            "frequencies": frequencies[n],
            "activation": name,
            "seed": n,
        }


class Case:
    """Random rows and a random head; the same numbers, rounded, in every dtype."""

    def __init__(self, rows=37, context=6, hidden=(17, 9), frequencies=3, activation="silu", seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        widths = [context + 1 + 2 * frequencies, *hidden, 1]
        self.activation = activation
        self.context, self.x = randn(rows, context), randn(rows)
        self.weights = [randn(o, i) / i**0.5 for i, o in pairwise(widths)]
        self.biases = [0.3 * randn(o) for o in widths[1:]]
        self.frequencies = 3 * randn(frequencies)
        self.alpha, self.beta, self.gamma = (1 + 0.5 * randn(rows) for _ in range(3))
        self.grads = randn(rows), randn(rows)

    def to(self, dtype, device=None):
        """A copy in another dtype; coefficients stay in float32 for 16-bit dtypes."""
        other = object.__new__(Case)
        wide = dtype if dtype.itemsize >= 4 else torch.float32
        for name, value in vars(self).items():
            to = wide if name in ("alpha", "beta", "gamma") else dtype
            if isinstance(value, torch.Tensor):
                value = value.to(device, to)
            elif isinstance(value, (list, tuple)):
                value = [v.to(device, to) for v in value]
            setattr(other, name, value)
        return other

    def leaves(self):
        """Fresh leaves that require gradients, as a dict by name."""
        named = {"context": self.context, "x": self.x}
        named |= {f"weights[{k}]": w for k, w in enumerate(self.weights)}
        named |= {f"biases[{k}]": b for k, b in enumerate(self.biases)}
        return {name: value.detach().clone().requires_grad_() for name, value in named.items()}


def split(leaves):
    """(context, x, weights, biases) of Case.leaves()."""
    weights = [value for name, value in leaves.items() if name.startswith("weights")]
    biases = [value for name, value in leaves.items() if name.startswith("biases")]
    return leaves["context"], leaves["x"], weights, biases


def plain_score_head(case, leaves):
    """Score and derivative by the reference's forward pass, for ordinary autograd to differentiate."""
    return reference_score_head(*split(leaves), case.frequencies, case.activation)


def plain_loss(case, leaves):
    """The loss in plain PyTorch, for ordinary autograd to differentiate."""
    s, ds = (value.to(case.alpha.dtype) for value in plain_score_head(case, leaves))
    return (case.alpha * s * s / 2 + case.beta * ds + case.gamma * s).sum()


def with_gradients(loss, leaves, upstream=1.0):
    """A loss and its gradients, as a dict."""
    grads = torch.autograd.grad(loss, list(leaves.values()), torch.full_like(loss, upstream))
    return {"loss": loss.detach(), **dict(zip(leaves, grads))}


def shares(*cases, relative=False):
    """By name of a result, its error over the error allowed: at most 1 where it is as accurate as it must be.

    Allowed is twice the error of plain PyTorch in the same dtype, plus a tiny floor.
    Cases are (got, plain, truth), each a dict of results by name. The error is the Euclidean norm of the
    difference from float64, pooled over the cases: a scalar, or a gradient of a few elements, may be right by
    chance in plain PyTorch, so results of that kind need about SEEDS of them. The floor is 4 units of
    rounding of the result's norm; results in float64 are held to 64 units, for want of a better truth.
    With ``relative``, errors are divided by the result's norm, so that cases of every size weigh the same.
    """
    found = {}
    for name in cases[0][2]:
        error = expected = size = 0.0
        for got, plain, truth in cases:
            assert got.keys() == plain.keys() == truth.keys()
            assert got[name].dtype == plain[name].dtype, name
            assert got[name].shape == truth[name].shape, name
            norm = truth[name].norm().item()
            scale = norm or 1.0 if relative else 1.0
            error += ((got[name].double() - truth[name]).norm().item() / scale) ** 2
            expected += ((plain[name].double() - truth[name]).norm().item() / scale) ** 2
            size += (norm / scale) ** 2
        dtype = cases[0][0][name].dtype
        units = (64 if dtype is torch.float64 else 4) * torch.finfo(dtype).eps
        allowed = 2 * expected**0.5 + units * size**0.5
        found[name] = 0.0 if error == 0 else error**0.5 / allowed if allowed else math.inf
    return found


def assert_as_accurate(*cases, relative=False):
    """Each result is as accurate as :func:`shares` allows."""
    for name, share in shares(*cases, relative=relative).items():
        assert share <= 1, f"{name}: the error is {share:.3g} times what is allowed"


def bitwise_equal(a, b):
    """Whether two dicts of tensors hold the same bits (NaN equals NaN)."""
    return a.keys() == b.keys() and all(
        torch.equal(torch.nan_to_num(a[k], 7e9), torch.nan_to_num(b[k], 7e9)) for k in a
    )
