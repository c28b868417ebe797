"""Every CUDA kernel against the reference.

tests/test_cuda_kernels.py runs this file on the host under sanitizers, with the library that the variable
FASTCSM_EMULATION names; tests/test_gpu.py on a device, without.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

sys.path.append(str(Path(__file__).parent / "ops"))

from support import (
    NAMES,
    Case,
    assert_as_accurate,
    bitwise_equal,
    plain_score_head,
    split,
)

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

        return lambda *args: moved(run(*moved(args, "cuda")), "cpu")


LIBRARY = os.environ.get("FASTCSM_EMULATION")
if LIBRARY:
    torch.ops.load_library(LIBRARY)
else:
    assert backends.CUDA().missing() == []
backends.register(Emulated() if LIBRARY else OnDevice())
PRECISIONS = ("float32", "tf32", "bfloat16")
# Rows, context, hidden widths and frequencies about the edges of tiles; among them the default head.
SHAPES = [
    (33, 6, (17, 9), 3),
    (1, 0, (1,), 0),
    (97, 13, (16,), 1),
    (32, 33, (128, 128), 16),
    (0, 3, (4, 4), 0),
    (31, 32, (127, 33), 0),
    (64, 15, (128, 1), 8),
]


@pytest.fixture(params=PRECISIONS)
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


def check(run, plain, precision, **settings):
    """``run``'s results are as accurate as ``plain``'s; in tf32, as bfloat16's with three more bits."""
    cases = []
    for seed in range(4):
        whole = Case(seed=seed, **settings)
        case = whole.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        with fastcsm.backend("emulation"):
            got = run(case)
        truth, expected = plain(case.to(torch.float64)), plain(case)
        if precision == "tf32":
            short = whole.to(torch.bfloat16)
            near, exact = plain(short), plain(short.to(torch.float64))
            expected = {k: (truth[k] + (near[k].double() - exact[k]) / 8).to(got[k].dtype) for k in truth}
        cases.append((got, expected, truth))
    assert_as_accurate(*cases, relative=True)


def scores(case):
    s, ds = functional.score_head(
        *split(case.leaves()), activation=case.activation, frequencies=case.frequencies
    )
    return {"score": s.detach(), "derivative": ds.detach()}


def plain_scores(case):
    s, ds = plain_score_head(case, case.leaves())
    return {"score": s.detach(), "derivative": ds.detach()}


def settings(shape, activation):
    rows, context, hidden, frequencies = shape
    return {
        "rows": rows,
        "context": context,
        "hidden": hidden,
        "frequencies": frequencies,
        "activation": activation,
    }


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
        (Case(hidden=(129, 4)).to(torch.float32), "a hidden layer of 129 units is wider than 128"),
        (Case(hidden=(8, 24, 15, 31)).to(torch.float32), "KiB of shared memory, a block has 227"),
        (Case(context=400, hidden=(128,)).to(torch.float32), "KiB of shared memory, a block has 227"),
        (Case().to(torch.float64), "torch.float64 is not one of"),
        (Case(hidden=(2,) * 5).to(torch.float32), "5 hidden layers are more than 4"),
    ],
)
def test_what_it_cannot_run_it_refuses(case, reason):
    with (
        fastcsm.backend("emulation"),
        pytest.raises(RuntimeError, match=reason),
    ):
        scores(case)
