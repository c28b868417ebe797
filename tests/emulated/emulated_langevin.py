"""langevin and langevin_draw in CUDA, as emulated_kernels.py; test_cuda_kernels.py runs both."""

from functools import partial

import emulated_kernels
import pytest
import torch
from comparisons import chain, compared, plain_chain, plain_precision, settings
from emulated_kernels import LIMIT, PRECISIONS, check
from preconditioned import ASINH, DISTANCES, SQUASH, Preconditioned, asinh_rows
from support import NAMES, Case, assert_as_accurate
from test_langevin import run as langevin
from test_langevin_draw import FORMS, Draw

import fastcsm
from fastcsm import random

precision = emulated_kernels.precision  # the fixture


SHAPES = [
    (17, 6, (17, 9), 3),
    (1, 1, (1,), 0),
    (8, 33, (128, 128), 16),
    (7, 32, (127, 33), 0),
    (16, 15, (128, 1, 70), 8),
    (15, 3, (8, 24, 15, 31), 40),
    (0, 2, (16,), 1),
]


@pytest.mark.parametrize(("shape", "activation"), list(zip(SHAPES, NAMES, strict=True)))
def test_langevin(shape, activation, precision):
    check(chain, plain_chain, precision, **settings(shape, activation))


@pytest.mark.parametrize(
    ("shape", "distance", "precision"), list(zip(SHAPES, DISTANCES, PRECISIONS)), indirect=["precision"]
)
def test_preconditioned_langevin(shape, distance, precision):
    run, plain = (partial(own, squash=SQUASH) for own in (chain, plain_chain))
    cases = [Preconditioned(distance, seed=seed, **settings(shape, "silu")) for seed in range(3)]
    assert_as_accurate(*(compared("emulation", run, plain, case, precision) for case in cases))


@pytest.mark.parametrize(("precision", "bar"), [("float32", 5e-7), ("tf32", 1e-5)], indirect=["precision"])
def test_squash_over_all_magnitudes(precision, bar):
    case = asinh_rows(torch.float32)
    case.context, case.x = case.context[::37], case.x[::37]
    noise = langevin(case, "reference", x=0 * case.x, **ASINH)
    got, v = langevin(case, "emulation", **ASINH), case.x.double()
    exact = v + SQUASH * torch.asinh(v / SQUASH)
    assert ((got - exact - noise) / exact.abs().clamp_min(1e-30)).abs().max() <= bar
    assert langevin(case, "emulation", x=case.x * torch.nan, **ASINH).isnan().all()


def test_the_noise_is_that_of_the_specification():
    case = Case(rows=5, context=0, hidden=(1,), frequencies=0).to(torch.float32)
    for parameter in (*case.weights, *case.biases):
        parameter.zero_()
    with fastcsm.backend("emulation"):
        got = chain(case, stages=False, sizes=[0.25], steps=66, seed=-5)["x"]
    rows = torch.arange(5)
    noise = [random.normal(-5, 2**40 + rows, rows % 7, 9 + step, torch.float64) for step in range(66)]
    torch.testing.assert_close(got.double(), case.x + 0.5 * sum(noise), rtol=0, atol=2e-5)


def test_contexts_that_shared_memory_does_not_hold():
    case = Case(rows=9, context=8000, hidden=(3,)).to(torch.float32)
    with fastcsm.backend("emulation"):
        got = chain(case)
    assert_as_accurate((got, plain_chain(case), plain_chain(case.to(torch.float64))))


def test_what_does_not_fit():
    with fastcsm.backend("emulation"):
        with pytest.raises(ValueError, match=rf"needs 5.. KiB of shared memory, a block has {LIMIT}; choose"):
            chain(Case(rows=1, frequencies=500).to(torch.float32))
        with pytest.raises(ValueError, match="step_sizes has 513 entries, expected at most 512"):
            chain(Case(rows=1).to(torch.float32), sizes=[0.1] * 513)


DRAWS = {
    **{name: {"features": 7 if name == "order" else 4} | form for name, form in FORMS.items()},
    "staged_residual": {"features": 3, "hidden": (19,) * 3, "models": 3, "residual": True, "frequencies": 0},
    "deep": {"features": 5, "hidden": (3, 70, 5), "made_activation": "gelu"},
}
FEW = {"batch": 9, "steps": 1, "sample": 2**33}


@pytest.mark.parametrize("form", DRAWS)
def test_langevin_draw(form, precision):
    draw = Draw(**DRAWS[form])
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def results(backend, dtype, storage=dtype):
        x, clean = draw.run(backend, dtype, storage=storage, **FEW)
        return {"x": x, "clean": clean}

    got, truth = results("emulation", dtype), results("reference", torch.float64)
    with plain_precision(precision):
        plain = results("reference", dtype)
    assert_as_accurate((got, plain, truth))


def test_more_values_than_shared_memory_holds():
    draw = Draw(features=2, hidden=(8000,), frequencies=0, made_activation="silu")
    few = {"batch": 9, "steps": 0}
    got, plain = (draw.run(backend, torch.float32, **few)[1] for backend in ("emulation", "reference"))
    assert_as_accurate(({"x": got}, {"x": plain}, {"x": draw.run("reference", **few)[1]}))


@pytest.mark.parametrize("activation", NAMES)
def test_a_network_of_every_activation(activation):
    draw = Draw(features=3, hidden=(5, 4), frequencies=0, made_activation=activation)
    exact = draw.run("reference", **FEW)
    for got, plain, truth in zip(
        draw.run("emulation", torch.float32, **FEW), draw.run("reference", torch.float32, **FEW), exact
    ):
        assert_as_accurate(({"x": got}, {"x": plain}, {"x": truth}))


@pytest.mark.parametrize("batch", [1, 7, 8, 17])
def test_a_sample_does_not_depend_on_its_batch(batch):
    draw = Draw(features=3, features_of_stages=True)
    x = torch.zeros(batch, 3)
    whole = draw.run("emulation", torch.float32, x=x, steps=1)[0]
    alone = draw.run("emulation", torch.float32, x=x[-1:], sample=5 + batch - 1, steps=1)[0]
    assert torch.equal(alone, whole[-1:])


def test_in_parts_it_is_the_same_draw_and_nothing_else_is_read():
    draw = Draw(features=5, order=[3, 0, 1, 4, 2])
    whole, clean = draw.run("emulation", torch.float32, **FEW)
    x, cleaned = torch.full((9, 5), torch.nan), torch.zeros_like(clean)
    for first, last in ((0, 1), (1, 1), (1, 3), (3, 5)):
        x, part = draw.run("emulation", torch.float32, **{**FEW, "x": x}, first=first, last=last)
        places = draw.made[0].order[first:last]
        cleaned[:, places] = part[:, places]
    assert torch.equal(x, whole)
    assert torch.equal(cleaned, clean)
    undisturbed, same = draw.run("emulation", torch.float32, denoise=0.0, **FEW)
    assert torch.equal(undisturbed, whole)
    assert torch.equal(same, whole)
    assert draw.run("emulation", torch.float32, batch=0)[0].shape == (0, 5)
