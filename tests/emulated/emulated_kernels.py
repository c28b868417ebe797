"""Every CUDA kernel against the reference.

test_cuda_kernels.py runs this file on the host under sanitizers, with the library that the variable
FASTCSM_EMULATION names; test_cuda_on_the_machine.py as compiled for the architecture that FASTCSM_MACHINE
names, 80 or 90; bench/gpu on a device, with neither.
"""

import os
from functools import partial

import comparisons
import pytest
import test_rescale
import torch
from comparisons import (
    backward,
    loss,
    plain_backward,
    plain_gradients,
    plain_scores,
    scores,
    settings,
)
from support import NAMES, Case, bitwise_equal, split
from torch.utils._pytree import tree_map

import fastcsm
from fastcsm import backends, functional


class Emulated(backends.CUDA):
    """The CUDA backend's kernels on the host; registered here and nowhere else."""

    name, device = "emulation", "cpu"

    def missing(self):
        return []


class OnDevice(Emulated):
    """The kernels themselves, for tensors of the host."""

    def kernels(self):
        return torch.ops.fastcsm_cuda

    def implementation(self, op):
        run = super().implementation(op)

        def moved(values, device):
            return tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, values)

        def there(*args):
            on_device = moved(args, "cuda")
            results = moved(run(*on_device), "cpu")
            if op.endswith("_into"):  # its last two arguments are results
                for given, value in zip(args[-2:], on_device[-2:], strict=True):
                    given.copy_(value)
            if op == "rescale":
                for given, value in zip(args[0], on_device[0], strict=True):
                    given.copy_(value)
            return results

        return there


LIBRARY, MACHINE = (os.environ.get(f"FASTCSM_{name}") for name in ("EMULATION", "MACHINE"))
if LIBRARY:
    torch.ops.load_library(LIBRARY)
    backends.register(Emulated())
elif MACHINE:
    from fastcsm.bench.machine import cuda_launchers

    cuda_launchers.on_the_machine(int(MACHINE))
else:
    assert backends.CUDA().missing() == []
    backends.register(OnDevice())
#: KiB of shared memory that a block may have.
LIMIT = backends.registry.known["emulation"].kernels().shared_bytes("score_head", False, 9, 1)[1] >> 10
PRECISIONS = ("float32", "tf32", "bfloat16")
# Rows, context, hidden widths and frequencies about the edges of tiles; among them the default head.
SHAPES = [
    (97, 6, (17, 9), 3),
    (1, 0, (1,), 0),
    (33, 13, (16,), 1),
    (32, 33, (128, 128), 16),
    (0, 3, (4, 4), 0),
    (31, 32, (127, 33), 0),
    (32, 15, (128, 1), 8),
]
# Deep heads, whose gradients' sums lie in device memory, and many inputs, some with the smaller tile.
LARGE = [
    ("bfloat16", (97, 6, (9, 20, 31), 2), "softplus"),
    ("bfloat16", (33, 100, (8, 24, 15, 31), 2), "tanh"),
    ("float32", (50, 2, (9, 20, 31), 0), "silu"),
    ("tf32", (40, 125, (17, 9), 1), "silu"),
    ("float32", (33, 180, (16,), 0), "softplus"),
]


@pytest.fixture(params=PRECISIONS)
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


check = partial(comparisons.check, "emulation")


@pytest.mark.parametrize(("shape", "activation"), list(zip(SHAPES, NAMES, strict=True)))
def test_score_head(shape, activation, precision):
    check(scores, plain_scores, precision, **settings(shape, activation))


@pytest.mark.parametrize(
    ("precision", "hidden"),
    [("float32", (9, 20, 31)), ("tf32", (9, 20, 31)), ("bfloat16", (8, 24, 15, 31))],
    indirect=["precision"],
)
def test_score_head_of_more_layers(hidden, precision):
    check(scores, plain_scores, precision, rows=70, hidden=hidden)


@pytest.mark.parametrize(("shape", "activation"), list(zip(SHAPES, NAMES, strict=True)))
def test_csm_loss(shape, activation, precision):
    check(loss, plain_gradients, precision, **settings(shape, activation))


@pytest.mark.parametrize(("precision", "shape", "activation"), LARGE, indirect=["precision"])
def test_csm_loss_of_large_heads(shape, activation, precision):
    check(loss, plain_gradients, precision, **settings(shape, activation))


@pytest.mark.parametrize(("shape", "activation"), list(zip(SHAPES[:4], NAMES[3:], strict=True)))
def test_score_head_backward(shape, activation, precision):
    check(backward, plain_backward, precision, **settings(shape, activation))


@pytest.mark.parametrize("shape", [(), (4, 1), (2, 3, 2)])
def test_rows_of_any_leading_shape_are_rows(shape):
    comparisons.check_shape("emulation", shape)


def test_rescale_of_gradients():
    test_rescale.check_as_compiled("emulation")


@pytest.mark.parametrize("wanted", ["context", "x", "weights[1]", ""])
def test_gradients_that_are_not_wanted(wanted):
    """What is computed does not depend on what else is: each gradient alone is that of all together."""
    case = Case(rows=97).to(torch.float32)
    coefficients = {"alpha": case.alpha, "beta": case.beta[:1], "gamma": case.gamma}

    def results(*names):
        leaves = {name: value.requires_grad_(name in names) for name, value in case.leaves().items()}
        head = {"activation": case.activation, "frequencies": case.frequencies}
        with fastcsm.backend("emulation"):
            value = functional.csm_loss(*split(leaves), **head, **coefficients)
        return {
            "loss": value.detach(),
            **dict(zip(names, torch.autograd.grad(value, [leaves[n] for n in names]))),
        }

    whole = results(*case.leaves())
    if wanted:
        some = results(wanted)
    else:
        with torch.no_grad(), fastcsm.backend("emulation"):
            leaves = case.leaves()
            some = {
                "loss": functional.csm_loss(
                    *split(leaves),
                    activation=case.activation,
                    frequencies=case.frequencies,
                    **coefficients,
                )
            }
    assert bitwise_equal(some, {name: whole[name] for name in some})


def test_a_row_does_not_depend_on_the_others():
    case = Case(rows=70).to(torch.float32)
    case.context[33], case.x[40] = float("nan"), float("inf")
    with fastcsm.backend("emulation"):
        whole = scores(case)
        assert bitwise_equal(whole, scores(case))
    bad = whole["score"].isnan()
    assert bad.nonzero().flatten().tolist() == [33, 40]
    case.context, case.x = case.context[~bad], case.x[~bad]
    with fastcsm.backend("emulation"):
        rest = scores(case)
    assert bitwise_equal(rest, {name: value[~bad] for name, value in whole.items()})


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(hidden=(4, 4, 4, 4)).to(torch.float32), f"KiB of shared memory, a block has {LIMIT}"),
        (Case(hidden=(129, 4)).to(torch.float32), "a hidden layer of 129 units is wider than 128"),
        (Case().to(torch.float64), "torch.float64 is not one of"),
        (Case(hidden=(2,) * 5).to(torch.float32), "5 hidden layers are more than 4"),
    ],
)
def test_what_it_cannot_differentiate_it_refuses(case, reason):
    with (
        fastcsm.backend("emulation"),
        pytest.raises(RuntimeError, match=reason),
    ):
        loss(case)


@pytest.mark.parametrize("sizes", [{"hidden": (8, 24, 15, 31)}, {"hidden": (128,), "context": 400}])
def test_what_does_not_fit_it_refuses(sizes):
    with (
        fastcsm.backend("emulation"),
        pytest.raises(RuntimeError, match=f"KiB of shared memory, a block has {LIMIT}"),
    ):
        scores(Case(**sizes).to(torch.float32))
