"""Heads, rows and the accuracy rule that all op tests share."""

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


def backend_params(op):
    """The reference, and the compiled backends that exist here; the others skip and say why."""
    params = ["reference"]
    for name in ("cpu",):
        request = backends.Request("cpu", torch.float32, (8, 1))
        backend = backends._backends[name]
        reasons = backend.missing() or backend.refuses(op, request)
        if op in getattr(backend, "ops", ()):
            marks = [pytest.mark.skip(reason="; ".join(reasons))] if reasons else []
            params.append(pytest.param(name, marks=marks))
    return params


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

    def to(self, dtype):
        """A copy in another dtype; coefficients stay in float32 for 16-bit dtypes."""
        other = object.__new__(Case)
        wide = dtype if dtype.itemsize >= 4 else torch.float32
        for name, value in vars(self).items():
            to = wide if name in ("alpha", "beta", "gamma") else dtype
            if isinstance(value, torch.Tensor):
                value = value.to(to)
            elif isinstance(value, (list, tuple)):
                value = [v.to(to) for v in value]
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


def assert_as_accurate(got, plain, truth, floors=()):
    """Each result's error is at most twice the error of plain PyTorch in the same dtype, plus a tiny floor.

    The error is the Euclidean norm of the difference from float64. The floor is 4 units of rounding of the
    result's norm, or what is given. Parameter gradients of a few elements are sums that may cancel by chance:
    16 units of the largest one. Results in float64 are held to 64 units, for want of a better truth.
    """
    floors = dict(floors)
    norms = {name: value.norm().item() for name, value in truth.items()}
    largest = max((norms[name] for name in truth if name.startswith(("weights", "biases"))), default=0.0)
    assert got.keys() == plain.keys() == truth.keys()
    for name, exact in truth.items():
        assert got[name].dtype == plain[name].dtype, name
        assert got[name].shape == exact.shape, name
        few = name.startswith(("weights", "biases")) and exact.numel() < 8
        units = 64 if got[name].dtype is torch.float64 else 16 if few else 4
        floor = units * torch.finfo(got[name].dtype).eps * (largest if few else norms[name])
        allowed = 2 * (plain[name].double() - exact).norm().item() + floors.get(name, floor)
        error = (got[name].double() - exact).norm().item()
        assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g} (norm {norms[name]:.3g})"


def bitwise_equal(a, b):
    """Whether two dicts of tensors hold the same bits (NaN equals NaN)."""
    return a.keys() == b.keys() and all(
        torch.equal(torch.nan_to_num(a[k], 7e9), torch.nan_to_num(b[k], 7e9)) for k in a
    )
