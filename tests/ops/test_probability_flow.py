import math

import preconditioned
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from preconditioned import DISTANCES, SQUASH, Preconditioned
from support import DTYPES, HIDDEN, ISAS, NAMES, ROWS, Case, backend_params

import fastcsm
from fastcsm import functional

BACKENDS = backend_params("probability_flow")
COMPILED = BACKENDS[1:]
TRITON = backend_params("probability_flow", "triton")[1:]
LEVELS = {"sigma_from": 0.1, "sigma_to": 1.3}


def flow(case, backend="auto", x=None, **settings):
    with fastcsm.backend(backend):
        return functional.probability_flow(
            case.context if "squash" in settings else case.context[:, :-1],
            case.x if x is None else x,
            case.weights,
            case.biases,
            activation=case.activation,
            frequencies=case.frequencies,
            **(LEVELS | settings),
        )


def back(settings=LEVELS):
    return {"sigma_from": settings["sigma_to"], "sigma_to": settings["sigma_from"]}


class Line:
    """r = -k (x - c): x - c grows by exp(k (sigma_to - sigma_from)) and log p falls by the exponent."""

    activation, frequencies = "silu", None

    def __init__(self, k, dtype=torch.float64):
        self.context = torch.tensor([[-0.4, 9.0], [0.0, 9.0], [0.7, 9.0]], dtype=dtype)
        self.x = torch.tensor([0.3, -1.0, 0.7], dtype=dtype)
        self.weights = [
            torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], dtype=dtype),
            torch.tensor([[-k, k]], dtype=dtype),
        ]
        self.biases = [None, None]


@pytest.mark.parametrize("backend", TRITON)
def test_known_flow_in_triton(backend):
    test_known_flow(backend, 0.5, torch.float32, 1e-4)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("k", [0.5, 3.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_flow(backend, k, dtype, bar):
    line = Line(k, dtype)
    for settings in (LEVELS, back()):
        growth = k * (settings["sigma_to"] - settings["sigma_from"])
        found = flow(line, backend, **settings)
        c = line.context[:, 0].double()
        expected = c + (line.x.double() - c) * math.exp(growth)
        assert (found.point.double() - expected).abs().max() <= bar * math.exp(max(growth, 0))
        assert (found.change.double() + growth).abs().max() <= bar
        assert found.error.max() <= 20 * bar


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", COMPILED)
def test_every_activation_and_depth(backend, activation, hidden, dtype):
    case = Case(rows=19, hidden=hidden, activation=activation).to(dtype)
    got, plain = flow(case, backend), flow(case, "reference")
    assert got.point.dtype == (torch.float32 if dtype is torch.bfloat16 else dtype)
    # Where s' jumps, rounding decides which step is taken.
    close = {"relu": 1e-3, "elu": 1e-3}.get(activation, 1e-8)
    if dtype is torch.float64:
        for a, b in zip(got, plain):
            torch.testing.assert_close(a, b, rtol=close, atol=close, equal_nan=True)
        return
    truth = flow(case.to(torch.float64), "reference", tolerance=max(1e-9, close / 10))
    for name in ("point", "change"):
        error, expected = (
            (getattr(value, name).double() - getattr(truth, name)).norm() for value in (got, plain)
        )
        assert error <= 2 * expected + 1e-4 * getattr(truth, name).norm(), name


@pytest.mark.parametrize("backend", COMPILED)
def test_float32_is_full_float32_whatever_the_precision_of_products(backend, precision):
    case = Case(rows=20).to(torch.float32)
    expected = flow(case, backend)
    precision("medium")
    assert all(torch.equal(a, b) for a, b in zip(flow(case, backend), expected))


@pytest.mark.parametrize("backend", TRITON)
def test_float32_is_full_float32_in_triton(backend, precision):
    from fastcsm.kernels import launch
    from fastcsm.kernels import probability_flow as kernel

    case = Case(rows=2).to(torch.float32)
    head = case.weights, case.biases, case.frequencies, case.activation
    precision("high")
    with launch.recorded() as launches:
        kernel.probability_flow(case.context[:, :-1], case.x, *head, 0.1, 1.3, 1e-4, True, 0.0)
    assert [entry.constants["S"].P for entry in launches] == ["tf32x3"]


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
def test_every_number_of_rows(backend, change):
    for rows in ROWS[:-1]:
        case = Case(rows=rows, seed=rows)
        got, expected = (flow(case, name, change=change) for name in (backend, "reference"))
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        assert change or not got.change.any()


TRITON_HEADS = [
    {"rows": 3, "hidden": (5,), "frequencies": 0, "activation": "tanh", "context": 1},
    {"rows": 33, "hidden": (17, 9), "frequencies": 3, "activation": "silu", "context": 70},
    {"rows": 1, "hidden": (70, 130), "frequencies": 0, "activation": "softplus", "context": 17},
    {"rows": 0, "hidden": (8, 24, 15, 31), "frequencies": 2, "activation": "sigmoid", "context": 2},
    {"rows": 2, "hidden": (8, 24, 15, 31), "frequencies": 2, "activation": "sigmoid", "context": 2},
]


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("settings", TRITON_HEADS, ids=lambda s: f"{s['rows']} {s['hidden']}")
def test_triton_is_the_reference(backend, settings):
    case = Case(**settings)
    case.x[1:2] = math.nan
    for levels in (LEVELS, back()):
        options = levels | {"tolerance": 1e-2, "change": levels is LEVELS}
        for a, b in zip(flow(case, backend, **options), flow(case, "reference", **options)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_gives_up_after_so_many_steps(backend, monkeypatch):
    from fastcsm.kernels import probability_flow as kernel

    monkeypatch.setattr(kernel, "MAX_STEPS", 3)
    found = flow(Case(rows=2), backend, tolerance=1e-9)
    assert found.point.isnan().all()
    assert found.change.isnan().all()
    assert found.error.isposinf().all()


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_flow_of_a_line(backend, dtype, bar):
    line, plain = preconditioned.Line(3.0, dtype), {"squash": 1e6}  # u is v
    for settings in (LEVELS, back()):
        growth = 3 * line.turned(**settings)
        found = flow(line, backend, **settings, **plain)
        c = line.context[:, 0].double()
        expected = c + (line.x.double() - c) * growth.exp()
        assert (found.point.double() - expected).abs().max() <= 20 * bar
        assert (found.change.double() + growth).abs().max() <= bar


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", COMPILED)
def test_preconditioned_flow_is_the_reference(backend, distance, dtype):
    case = Preconditioned(distance, rows=50).to(dtype)
    wide = 0.05, 20.0
    for levels in (wide, wide[::-1]):
        options = dict(zip(LEVELS, levels)) | {"squash": SQUASH, "change": levels is wide}
        got, plain = flow(case, backend, **options), flow(case, "reference", **options)
        assert got.error.isfinite().all()
        if dtype is torch.float64:
            for a, b in zip(got, plain):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
            continue
        truth = flow(case.to(torch.float64), "reference", **options)
        for a, b, exact in zip(got[:2], plain[:2], truth[:2]):
            assert (a - exact).norm() <= 2 * (b - exact).norm() + 1e-4 * exact.norm()


@pytest.mark.parametrize("backend", TRITON)
def test_preconditioned_flow_is_the_reference_in_triton(backend):
    case = Preconditioned(rows=3, context=17)
    case.x *= torch.tensor(DISTANCES)
    for levels in ((0.05, 20.0), (20.0, 0.05)):
        options = dict(zip(LEVELS, levels)) | {"squash": SQUASH, "tolerance": 1e-2, "change": levels[0] < 1}
        for a, b in zip(flow(case, backend, **options), flow(case, "reference", **options)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_flow_there_and_back(backend):
    for distance in DISTANCES:
        case = Preconditioned(distance, rows=10)
        there = flow(case, backend, squash=SQUASH)
        again = flow(case, backend, x=there.point, squash=SQUASH, **back())
        torch.testing.assert_close(again.point, case.x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.change, -there.change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_flow_has_mass_one(backend, seed):
    """From a normal law at 20 tau, whatever the weights."""
    case = Preconditioned(rows=1, seed=seed)
    case.x = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    case.context, tau = case.context.expand(3001, -1), math.exp(-case.context[0, -1])
    found = flow(case, backend, sigma_from=0.02 * tau, sigma_to=20 * tau, tolerance=1e-5, squash=SQUASH)
    density = (-found.point.square() / 2 - found.change).exp() / math.sqrt(2 * math.pi)
    assert torch.trapezoid(density, case.x).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS + TRITON)
def test_preconditioned_rows_of_any_size_arrive(backend):
    case = Preconditioned(rows=3).to(torch.float32)
    case.x = torch.tensor([-1e12, 1e18, 1e19])
    found = flow(case, backend, squash=SQUASH)
    torch.testing.assert_close(found.point, case.x, rtol=1e-5, atol=0)
    assert found.error.isfinite().all()
    assert found.change.abs().max() < 1e-6


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_every_instruction_set(isa):
    case = Case(rows=29)
    for options in ({}, {"squash": SQUASH}):
        for a, b in zip(flow(case, "cpu", **options), flow(case, "reference", **options)):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["softplus", "tanh", "silu", "gelu", "elu", "sigmoid"])
def test_there_and_back(backend, activation):
    case = Case(rows=40, activation=activation)
    there = flow(case, backend)
    again = flow(case, backend, x=there.point, **back())
    assert (again.point - case.x).abs().max() <= 1e-4
    assert (again.change + there.change).abs().max() <= 1e-4
    assert flow(case, backend, x=there.point, **back(), tolerance=1e-3).error.max() > again.error.max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_change_is_the_slope_of_the_map(backend):
    """p_to(y) dy = p_from(x) dx."""
    case, h = Case(rows=30), 1e-4
    found = flow(case, backend, tolerance=1e-10)
    above, below = (flow(case, backend, x=case.x + step, tolerance=1e-11).point for step in (h, -h))
    slope = (above - below) / (2 * h)
    torch.testing.assert_close(found.change, -slope.log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-8])
def test_error_follows_the_tolerance(tolerance):
    case = Case(rows=60)
    truth, found = flow(case, tolerance=1e-12), flow(case, tolerance=tolerance)
    assert (found.change - truth.change).abs().max() <= 30 * tolerance
    assert (found.change - truth.change).abs().median() <= 3 * found.error.median()


@pytest.mark.parametrize("backend", BACKENDS + TRITON)
def test_equal_levels_change_nothing(backend):
    case = Case(rows=5)
    found = flow(case, backend, sigma_from=0.3, sigma_to=0.3)
    assert torch.equal(found.point, case.x)
    assert not found.change.any()
    assert not found.error.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_do_not_arrive_are_reported(backend):
    case = Line(2.0)
    case.x[1] = math.nan
    found = flow(case, backend)
    assert found.point.isfinite().tolist() == found.change.isfinite().tolist() == [True, False, True]
    assert found.error.isposinf().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_take_too_many_steps_are_reported(backend):
    steep = flow(Line(1e7), backend, sigma_from=2.0, sigma_to=1e-3)
    assert steep.point.isnan()[:2].all()
    assert steep.error.isposinf()[:2].all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 99), rows=st.integers(2, 30))
def test_rows_are_independent(backend, seed, rows):
    case = Case(rows=rows, seed=seed).to(torch.float32)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    whole = flow(case, backend)
    case.context, case.x = case.context[order], case.x[order]
    for a, b in zip(flow(case, backend), (value[order] for value in whole)):
        if backend == "cpu":
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("given", [(1,), (2,), (3,), (3, True)])
@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_for_any_number_of_threads(backend, given, threads):
    case = Case(rows=300).to(torch.float32)
    expected = flow(case, backend)
    threads(*given)
    assert all(torch.equal(a, b) for a, b in zip(flow(case, backend), expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_axes_and_no_gradient(backend):
    case = Case(rows=6)
    case.context.requires_grad_()
    flat = flow(case, backend)
    assert not any(value.requires_grad for value in flat)
    case.context, case.x = case.context.view(2, 3, -1), torch.stack([case.x.view(2, 3)] * 2, -1)[..., 0]
    with fastcsm.backend(backend):
        found = functional.probability_flow(
            case.context[..., :-1], case.x, case.weights, case.biases, frequencies=case.frequencies, **LEVELS
        )
    for a, b in zip(found, flat):
        assert a.shape == (2, 3)
        assert torch.equal(a.flatten(), b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend):
    case = Case(rows=5)
    args = case.context[:, :-1].contiguous(), case.x, case.weights, case.biases, case.frequencies, "silu"
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with fastcsm.backend(backend):
        torch.library.opcheck(
            torch.ops.fastcsm.probability_flow.default, (*args, 0.1, 1.3, 1e-4, True, 0.0), test_utils=utils
        )
        compiled = torch.compile(functional.probability_flow, fullgraph=True, backend="aot_eager")
        options = {"frequencies": case.frequencies} | LEVELS
        got = compiled(*args[:4], **options)
        for a, b in zip(got, functional.probability_flow(*args[:4], **options)):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_from": 0.0}, "sigma_from must be a positive number, got 0.0"),
        ({"sigma_to": -1.0}, "sigma_to must be a positive number, got -1.0"),
        ({"sigma_to": math.inf}, "sigma_to must be a positive number, got inf"),
        ({"tolerance": -1e-3}, "tolerance must be a positive number, got -0.001"),
        ({"squash": -3.0}, "squash must be a positive number, got -3.0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        flow(Case(rows=2), **change)


@pytest.mark.gpu
def test_reference_on_gpu():
    case = Case(rows=9)
    expected = flow(case, "reference")
    for name in ("context", "x", "frequencies"):
        setattr(case, name, getattr(case, name).cuda())
    case.weights, case.biases = ([p.cuda() for p in part] for part in (case.weights, case.biases))
    for a, b in zip(flow(case, "reference"), expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6)
