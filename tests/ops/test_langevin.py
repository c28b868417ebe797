import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from preconditioned import ASINH, DISTANCES, SQUASH, Preconditioned, asinh_rows
from support import DTYPES, ISAS, NAMES, SEEDS, Case, assert_as_accurate, backend_params, triton_cases

import fastcsm
from fastcsm import functional, random
from fastcsm.reference.score_head import score_head as reference_score_head

BACKENDS = backend_params("langevin")
COMPILED = BACKENDS[1:]
WITH_TRITON = backend_params("langevin", "cpu", "triton")
TRITON = WITH_TRITON[2:]
SETTINGS = {"step_sizes": [0.3, 0.02], "score_scales": [1.0, 1.7], "steps": 5, "seed": 7}
PRECONDITIONED = {"stage_features": [0.4, -1.6], "squash": SQUASH}


def run(case, backend="auto", **settings):
    context = settings.pop("context", case.context)
    with fastcsm.backend(backend):
        return functional.langevin(
            context[:, :-1] if settings.get("stage_features") and "squash" not in settings else context,
            settings.pop("x", case.x),
            case.weights,
            case.biases,
            activation=case.activation,
            frequencies=case.frequencies,
            **(SETTINGS | settings),
        )


def check(case, backend, dtype, **settings):
    case = case.to(dtype)
    exact = run(case.to(torch.float64), "reference", **settings)
    plain, got = run(case, "reference", **settings), run(case, backend, **settings)
    assert got.dtype == dtype
    floor = (64 if dtype is torch.float64 else 4) * torch.finfo(dtype).eps * exact.norm()
    assert (got.double() - exact).norm() <= 2 * (plain.double() - exact).norm() + floor


def test_reference_is_the_formula():
    case = Case(rows=3, frequencies=0)
    x, k = case.x, 1
    samples, dimensions = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    for e, scale in zip(SETTINGS["step_sizes"], SETTINGS["score_scales"]):
        for _ in range(SETTINGS["steps"]):
            s, _ = reference_score_head(case.context, x, case.weights, case.biases, case.frequencies, "silu")
            x = x + e / 2 * scale * s + e**0.5 * random.normal(7, samples, dimensions, k, torch.float64)
            k += 1
    torch.testing.assert_close(run(case, "reference"), x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", COMPILED)
def test_every_activation_and_depth(backend, activation, dtype):
    for hidden, frequencies in (((5,), 0), ((17, 9), 3), ((33, 16, 7), 0), ((8, 24, 15, 31), 3)):
        check(Case(hidden=hidden, activation=activation, frequencies=frequencies), backend, dtype)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", COMPILED)
def test_values_of_an_activation_over_the_line(backend, activation):
    """One unit that reads the context: the step is its value, with noise of 1e-6 beside it."""
    tiny = torch.tensor([0.0, 1e-30, 1e-6, 1e-3], dtype=torch.float64)
    line = torch.linspace(-40, 40, 9001, dtype=torch.float64)
    line = torch.cat([line, tiny, -tiny, 1e4 * tiny, -1e4 * tiny])
    case = Case(rows=len(line), context=1, hidden=(1,), activation=activation, frequencies=0)
    case.context, case.x = line[:, None], torch.zeros_like(line)
    case.weights = [torch.tensor([[1.0, 0.0]]), torch.ones(1, 1)]
    case.biases = [torch.zeros(1), torch.zeros(1)]
    settings = {"step_sizes": [1e-12], "score_scales": [2e12], "steps": 1}
    single = case.to(torch.float32)
    exact = run(single.to(torch.float64), "reference", **settings)
    got = run(single, backend, **settings)
    assert ((got - exact).abs() / exact.abs().clamp(min=1)).max() < 1.5 * torch.finfo(torch.float32).eps
    nan = run(single, backend, context=single.context * float("nan"), **settings)
    assert nan.isnan().all()


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129, 1000])
@pytest.mark.parametrize("backend", COMPILED)
def test_every_number_of_rows(backend, rows):
    check(Case(rows=rows, hidden=(32, 48)), backend, torch.float32)


@pytest.mark.parametrize("context", [1, 2, 16, 17])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", COMPILED)
def test_stage_features_are_accurate(backend, dtype, context):
    check(Case(context=context, hidden=(70, 17)), backend, dtype, stage_features=[0.4, -2.0])


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_medium_precision_is_as_accurate_as_bfloat16(precision):
    precision("medium")
    for activation in NAMES:
        cases = []
        for seed in SEEDS:
            case = Case(hidden=(40, 33), activation=activation, seed=seed)
            got, baseline = run(case.to(torch.float32), "cpu"), run(case.to(torch.bfloat16), "reference")
            cases.append(({"x": got}, {"x": baseline.float()}, {"x": run(case, "reference")}))
        assert_as_accurate(*cases)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_is_the_formula(backend):
    """In x - m = tau y: s = a F(c, ln(sigma / tau), u) - kappa^2 (x - m), kappa^-2 = sigma^2 + tau^2."""
    case, k = Preconditioned(rows=9), 1
    tau = (-case.context[:, -1]).exp()
    samples, dimensions = torch.arange(9), torch.zeros(9, dtype=torch.int64)
    head, x = (case.weights, case.biases, case.frequencies, "silu", False), tau * case.x
    for e, level in zip(SETTINGS["step_sizes"], PRECONDITIONED["stage_features"]):
        sigma, c = math.exp(level), case.context.clone()
        c[:, -1] += level
        kappa = (sigma**2 + tau**2).rsqrt()
        for _ in range(SETTINGS["steps"]):
            u = SQUASH * torch.asinh(kappa * x / SQUASH)
            s = tau * kappa / sigma * reference_score_head(c, u, *head)[0] - kappa**2 * x
            x = x + e / 2 * s + e**0.5 * random.normal(7, samples, dimensions, k, torch.float64)
            k += 1
    torch.testing.assert_close(run(case, backend, **PRECONDITIONED), x / tau, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", COMPILED)
def test_preconditioned_is_accurate(backend, distance, dtype):
    for context, rows, frequencies in ((1, 37, 0), (6, 70, 3)):
        case = Preconditioned(distance, context=context, rows=rows, frequencies=frequencies)
        check(case, backend, dtype, **PRECONDITIONED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", TRITON)
def test_preconditioned_is_accurate_in_triton(backend, dtype):
    """As the other backends, with fewer rows; one context is the level alone."""
    for context, hidden, distance in ((1, (17, 9), 1.0), (18, (5,), 1e6)):
        case = Preconditioned(distance, rows=17, context=context, hidden=hidden)
        check(case, backend, dtype, **PRECONDITIONED, steps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_squash_is_exact_over_all_magnitudes(backend, dtype):
    case = asinh_rows(dtype)
    exact = case.x.double() + SQUASH * torch.asinh(case.x.double() / SQUASH)
    noise = run(case, "reference", x=torch.zeros_like(case.x), **ASINH).double()
    got = run(case, backend, **ASINH).double()
    assert ((got - exact - noise) / exact.abs().clamp_min(1e-8)).abs().max() < 4 * torch.finfo(dtype).eps
    assert run(case, backend, x=case.x * float("nan"), **ASINH).isnan().all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_squash_on_every_instruction_set():
    for dtype in (torch.float32, torch.float64):
        test_squash_is_exact_over_all_magnitudes("cpu", dtype)
        check(Preconditioned(rows=29), "cpu", dtype, **PRECONDITIONED)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_rows_are_the_same_in_any_split(backend):
    case, samples = Preconditioned(rows=40), torch.arange(40)
    whole, parts = run(case, backend, samples=samples, **PRECONDITIONED), []
    for part in (slice(0, 13), slice(13, 40)):
        own = {"context": case.context[part], "x": case.x[part], "samples": samples[part]}
        parts.append(run(case, backend, **own, **PRECONDITIONED))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stage_features", [[], [0.4, -1.0]])
@pytest.mark.parametrize("backend", TRITON)
def test_triton_at_every_edge(backend, stage_features):
    for settings in triton_cases():
        if settings["context"] > 0:
            check(Case(**settings), backend, torch.float64, steps=2, stage_features=stage_features or None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stage_feature_is_the_last_context_feature(backend):
    case = Case()
    got = run(case, backend, stage_features=[0.5, -1.0])
    x = case.x
    for i, feature in enumerate((0.5, -1.0)):
        case.context[:, -1] = feature
        stage = {name: SETTINGS[name][i : i + 1] for name in ("step_sizes", "score_scales")}
        x = run(case, backend, x=x, first_step=1 + 5 * i, **stage)
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    rows=st.integers(1, 70), cut=st.integers(0, 70), seed=st.integers(0, 2**64 - 1), step=st.integers(0, 9)
)
def test_a_seed_means_the_same_draw_for_any_split(backend, rows, cut, seed, step):
    case = Case(rows=rows, frequencies=0)
    samples = torch.arange(rows) + (1 << 33)
    dimensions = torch.arange(rows) % 3
    ids = {"samples": samples, "dimensions": dimensions, "seed": seed, "first_step": step}
    whole = run(case, backend, **ids)
    parts = []
    for part in (slice(0, cut), slice(cut, rows)):
        ids |= {"samples": samples[part], "dimensions": dimensions[part]}
        parts.append(run(case, backend, context=case.context[part], x=case.x[part], **ids))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        whole, run(case, "reference", **(ids | {"samples": samples, "dimensions": dimensions}))
    )


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_noise_depends_on_seed_sample_dimension_and_step(backend):
    case = Case(rows=4)
    ones = torch.ones(4, dtype=torch.int64)
    base = run(case, backend, samples=ones, dimensions=ones)
    assert not torch.equal(base, run(case, backend, samples=2 * ones, dimensions=ones))
    assert not torch.equal(base, run(case, backend, samples=ones + (1 << 32), dimensions=ones))
    assert not torch.equal(base, run(case, backend, samples=ones, dimensions=2 * ones))
    assert not torch.equal(base, run(case, backend, samples=ones, dimensions=ones, seed=8))
    assert not torch.equal(base, run(case, backend, samples=ones, dimensions=ones, seed=7 + (1 << 32)))
    assert not torch.equal(base, run(case, backend, samples=ones, dimensions=ones, first_step=2))


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_noise_alone_is_the_noise_rule(backend):
    case = Case(rows=50)
    case.weights[-1].zero_()
    case.biases[-1].zero_()
    case.x.zero_()
    got = run(case, backend, step_sizes=[1.0], score_scales=[1.0], steps=1, first_step=9)
    expected = random.normal(7, torch.arange(50), torch.zeros(50, dtype=torch.int64), 9, torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_no_step_returns_a_copy(backend):
    case = Case()
    for settings in ({"steps": 0}, {"step_sizes": [], "score_scales": []}):
        got = run(case, backend, **settings)
        assert torch.equal(got, case.x)
        assert got.data_ptr() != case.x.data_ptr()


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_shapes_and_layouts(backend):
    case = Case(rows=12)
    expected = run(case, backend)
    got = run(
        case,
        backend,
        context=case.context.t().contiguous().t().reshape(3, 4, 6),
        x=torch.stack([case.x, case.x], -1)[:, 0].reshape(3, 4),
    )
    assert got.shape == (3, 4)
    assert torch.equal(got.flatten(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_records_no_gradient(backend):
    case = Case()
    case.weights = [w.requires_grad_() for w in case.weights]
    assert not run(case, backend).requires_grad


@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_for_any_number_of_threads(backend, threads):
    case = Case(rows=1000, hidden=(64, 64)).to(torch.float32)
    results = []
    for count, own in ((1, False), (2, False), (2, True)):
        threads(count, own)
        results.append(run(case, backend))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_samples_have_the_target_moments():
    n = 20000
    # relu(x) - relu(-x) = x, so this head is the score of N(1/2, 1/4), 2 - 4 x.
    weights, biases = (
        [torch.tensor([[1.0], [-1.0]]), torch.tensor([[-4.0, 4.0]])],
        [None, torch.tensor([2.0])],
    )
    x = functional.langevin(
        torch.zeros(n, 0),
        torch.zeros(n),
        weights,
        biases,
        activation="relu",
        step_sizes=[0.02],
        steps=100,
        seed=3,
    )
    assert abs(x.mean() - 0.5) < 0.02
    assert abs(x.std() - 0.5) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    c = Case(rows=5).to(torch.float32)
    ids = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    args = c.context, c.x, c.weights, c.biases, c.frequencies, "silu", [0.1], [1.0], [], 3, -5, *ids, 1, 0.0
    with fastcsm.backend(backend):
        torch.library.opcheck(
            torch.ops.fastcsm.langevin.default,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step_sizes": [0.1, -0.2]}, ValueError, "step_sizes must not be negative, got -0.2"),
        (
            {"score_scales": [1.0]},
            ValueError,
            "score_scales must have one entry for each of the 2 step_sizes",
        ),
        ({"stage_features": [1.0] * 3}, ValueError, "stage_features must have one entry"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"first_step": -1}, ValueError, "first_step must be in"),
        (
            {"squash": 0.0, "stage_features": [1.0] * 2},
            ValueError,
            "squash must be a positive number, got 0.0",
        ),
        ({"squash": 3.0}, ValueError, "stage_features must be given with squash"),
        ({"samples": torch.arange(3)}, ValueError, r"samples must have shape \(37,\), got \(3,\)"),
        (
            {"samples": torch.zeros(37)},
            TypeError,
            "samples must be an integer tensor on cpu, got torch.float32",
        ),
        ({"dimensions": 0}, TypeError, "dimensions must be an integer tensor on cpu, got int"),
        ({"context": torch.zeros(37, 5).double()}, ValueError, r"weights\[0\] must have shape \(17, 12\)"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        run(Case(), **change)
