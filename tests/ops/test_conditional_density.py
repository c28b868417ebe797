import math

import pytest
import torch
from densities import KNOWN, Restoring, Waves, density, gaussian, gradients
from hypothesis import given
from hypothesis import strategies as st
from preconditioned import DISTANCES, SQUASH, Preconditioned
from support import DTYPES, HIDDEN, ISAS, NAMES, ROWS, SEEDS, backend_params, split

import fastcsm
from fastcsm import backends, functional
from fastcsm.reference import quadrature

BACKENDS = backend_params("conditional_density")
COMPILED = BACKENDS[1:]
TRITON = backend_params("conditional_density", "triton")[1:]
#: sigma = 0.3, of a row's v.
PRECONDITIONED = {"low": -4.0, "high": 4.0, "stage_feature": math.log(0.3), "squash": SQUASH}
BARS = {torch.float64: 1e-6, torch.float32: 1e-4}


def close_to_reference(got, expected, close=1e-9, error=1e-4):
    for name, a, b in zip(got._fields, got, expected):
        # The error is itself a difference of rounded numbers.
        relative = error if name == "error" else close
        torch.testing.assert_close(a, b, rtol=relative, atol=close, equal_nan=True)


def same_gradients(got, expected):
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


TRITON_HEADS = [
    {"hidden": (5,), "frequencies": 0, "activation": "tanh", "context": 1},
    {"hidden": (17, 9), "frequencies": 3, "activation": "silu", "context": 70},
    {"hidden": (70, 130), "frequencies": 0, "activation": "softplus", "context": 17},
    {"hidden": (33, 16, 7), "frequencies": 17, "activation": "gelu", "context": 6},
    {"hidden": (8, 24, 15, 31), "frequencies": 2, "activation": "sigmoid", "context": 2},
]


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("settings", TRITON_HEADS, ids=lambda s: str(s["hidden"]))
def test_triton_is_the_reference(backend, settings):
    case = Restoring(rows=1, steepness=2.0, **settings)
    options = {"tolerance": 1e-3, "panels": 3, "score_scale": 0.7, "stage_feature": 0.3}
    if len(settings["hidden"]) % 2 == 1:
        options |= {"inverse": True, "point": torch.tensor([0.4]).double()}
    close_to_reference(density(case, backend, **options), density(case, "reference", **options))


@pytest.mark.parametrize("backend", TRITON)
def test_triton_at_the_limits(backend):
    """More panels wanted than fit; no density; a point and a probability far out; no rows."""

    def check(case, error=1e-4, **options):
        found = density(case, backend, **options)
        close_to_reference(found, density(case, "reference", **options), 1e-7, error)
        return found

    def row(name, n, **changes):
        case = KNOWN[name]()
        case.context, case.x, case.frequencies = case.context[n : n + 1], case.x[n : n + 1], None
        for key, value in changes.items():
            setattr(case, key, value)
        return case

    waves = Waves(0.003, 1.0, 8, seed=24).at(torch.zeros(1).double())
    assert 1e-5 < check(waves, low=-120.0, high=80.0, panels=16, tolerance=1e-5).error.item() < math.inf
    growing = row("gaussian", 60, weights=[w.neg() if w.shape[0] == 1 else w for w in gaussian(0.1).weights])
    assert check(growing, tolerance=1.0, panels=1).log_density.isnan().all()
    far = check(row("gaussian", 60), 0.1, tolerance=1.0, point=torch.tensor([-1e9]).double())
    assert far.log_density.item() == pytest.approx(-5e19, rel=1e-8)
    u = torch.tensor([1e-300], dtype=torch.float64)
    check(row("logistic", 60), tolerance=1.0, low=-1e-3, high=1e-3, panels=1, point=u, inverse=True)
    check(row("gaussian", 60), point=torch.tensor([1.5]).double(), inverse=True)
    check(row("gaussian", 1000))


@pytest.mark.parametrize("backend", TRITON)
def test_triton_takes_more_rows_than_programs(backend, monkeypatch):
    from fastcsm.kernels import conditional_density as kernel

    case = Restoring(rows=3, hidden=(5,), frequencies=0, steepness=2.0)
    whole = density(case, backend, tolerance=1.0, panels=2)
    monkeypatch.setattr(kernel, "MOST_PROGRAMS", 2)
    for a, b in zip(density(case, backend, tolerance=1.0, panels=2), whole):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", COMPILED + TRITON)
def test_preconditioned_gradient_is_that_of_the_reference(backend):
    case = Preconditioned(rows=2, context=2, hidden=(5,))
    options = PRECONDITIONED | {"tolerance": 1e-3}
    same_gradients(*(gradients(case, name, **options) for name in (backend, "reference")))


@pytest.mark.parametrize("backend", TRITON)
def test_triton_has_the_gradient_of_the_reference(backend):
    case = Restoring(rows=2, context=2, hidden=(5,), steepness=2.0)
    same_gradients(*(gradients(case, name, tolerance=1e-3) for name in (backend, "reference")))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_preconditioned_head_that_says_nothing_is_normal(backend, inverse):
    case = Preconditioned(rows=3, hidden=(5,))
    case.weights[-1].zero_()
    case.biases[-1].zero_()
    v = torch.tensor([-0.3, 3.0, -1e6], dtype=torch.float64)[: 2 if inverse else 3]
    case.context, cdf = case.context[: len(v)], torch.special.ndtr(v)
    found = density(case, backend, point=cdf if inverse else v, inverse=inverse, **PRECONDITIONED)
    torch.testing.assert_close(found.point, v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.cdf, cdf, rtol=1e-7, atol=1e-7)
    expected = -v.square() / 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found.log_density, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", TRITON)
def test_preconditioned_density_is_that_of_the_reference_in_triton(backend, inverse):
    case = Preconditioned(1e3, rows=1, context=4)
    point = torch.tensor([0.4]).double() if inverse else None
    options = PRECONDITIONED | {"tolerance": 1e-3, "panels": 3, "inverse": inverse}
    close_to_reference(*(density(case, name, point, **options) for name in (backend, "reference")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", COMPILED)
def test_preconditioned_rows_have_a_density_wherever_they_are(backend, dtype):
    for distance in DISTANCES:
        case = Preconditioned(distance, rows=21, hidden=(17, 9)).to(dtype)
        truth = density(case.to(torch.float64), "reference", **PRECONDITIONED, tolerance=1e-9)
        got = density(case, backend, **PRECONDITIONED)
        error = (got.log_density.double() - truth.log_density).abs()
        assert (error - got.error.double() - truth.error).max() <= 0
        if dtype is torch.float64:
            close_to_reference(got, density(case, "reference", **PRECONDITIONED))
    point = torch.linspace(0.01, 0.99, len(case.x), dtype=torch.float64)
    if dtype is torch.float64:
        options = PRECONDITIONED | {"point": point, "inverse": True}
        close_to_reference(density(case, backend, **options), density(case, "reference", **options))


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("feature", [[], [0.4]])
def test_triton_has_the_nodes_of_the_reference(backend, feature):
    case = Restoring(rows=2, context=3, steepness=2.0)
    case.x[1] = math.nan
    context = case.context[:, : 3 - len(feature)].contiguous()
    head = context, case.x, case.weights, case.biases, case.frequencies, "silu"
    args = *head, 1.3, feature, -1.0, 1.0, 1e-3, 4, 0.0
    found = {}
    for name in ("reference", backend):
        with fastcsm.backend(name):
            request = backends.Request("cpu", torch.float64, (17, 9, 1))
            found[name] = backends.select("conditional_density_nodes", request)(*args)
    (t, weight, count, score), expected = found[backend], found["reference"]
    assert t.shape == weight.shape == (2, quadrature.MAX_PANELS * quadrature.NODES)
    assert torch.equal(count, expected[2])
    used = torch.arange(expected[0].shape[1]) < count[:, None]
    for a, b in zip((t, weight), expected):
        torch.testing.assert_close(a[:, : used.shape[1]][used], b[used], rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(score, expected[3], rtol=1e-9, atol=1e-9, equal_nan=True)
    assert not t[:, used.shape[1] :].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nodes_that_do_not_count_are_zero(backend):
    case = Restoring(rows=40, context=3, steepness=2.0)
    head = case.context, case.x, case.weights, case.biases, case.frequencies, "silu"
    with fastcsm.backend(backend):
        select = backends.select(
            "conditional_density_nodes", backends.Request("cpu", torch.float64, (17, 9, 1))
        )
        t, weight, count, _ = select(*head, 1.0, [], -1.0, 1.0, 1e-3, 2, 0.0)
    unused = torch.arange(t.shape[1]) >= count[:, None]
    assert not t[unused].any()
    assert not weight[unused].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", COMPILED)
def test_every_activation_and_depth(backend, activation, hidden, dtype):
    case = Restoring(rows=21, hidden=hidden, activation=activation).to(dtype)
    truth = density(case.to(torch.float64), "reference", tolerance=1e-9)
    got = density(case, backend)
    assert got.log_density.dtype == (torch.float32 if dtype is torch.bfloat16 else dtype)
    error = (got.log_density.double() - truth.log_density).abs()
    assert (error - got.error.double() - truth.error).max() <= 0
    if dtype is torch.float64:
        plain = density(case, "reference")
        for a, b in zip(got, plain):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
def test_every_number_of_rows(backend, inverse):
    for rows in ROWS[:-1]:
        case = Restoring(rows=rows, seed=rows).to(torch.float64)
        point = torch.linspace(0, 1, rows + 2, dtype=torch.float64)[1:-1] if inverse else case.x
        options = {"point": point, "inverse": inverse, "score_scale": 0.7, "stage_feature": 0.3}
        got, expected = density(case, backend, **options), density(case, "reference", **options)
        assert got.ends.shape == (rows, 2)
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_every_instruction_set(isa):
    case = Restoring(rows=29)
    for options in ({}, PRECONDITIONED):
        close_to_reference(density(case, "cpu", **options), density(case, "reference", **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["softplus", "tanh", "silu"])
@pytest.mark.parametrize("feature", [{}, {"stage_feature": 0.4, "score_scale": 1.3}])
def test_gradcheck(backend, activation, feature):
    case = Restoring(rows=3, context=2, hidden=(5, 4), frequencies=1, activation=activation, steepness=2.0)
    leaves = case.leaves()
    if feature:
        leaves["context"] = leaves["context"].detach()[:, :-1].clone().requires_grad_()
    gradcheck(case, backend, leaves, low=-1.0, high=1.0, **feature)


def gradcheck(case, backend, leaves, **options):
    def log_density(*values):
        context, x, weights, biases = split(dict(zip(leaves, values)))
        head = {"activation": case.activation, "frequencies": case.frequencies}
        with fastcsm.backend(backend):
            return functional.conditional_density(
                context, x, weights, biases, **head, tolerance=1e-10, **options
            ).log_density

    assert torch.autograd.gradcheck(log_density, tuple(leaves.values()), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preconditioned_gradcheck(backend):
    case = Preconditioned(rows=2, context=1, hidden=(3,), frequencies=0)
    gradcheck(case, backend, case.leaves(), **PRECONDITIONED)


@pytest.mark.parametrize("backend", COMPILED)
def test_gradients_are_as_accurate_as_plain_pytorch(backend):
    """Pooled over seeds; part of the error is the quadrature's, so the tolerance is tight."""

    upstream, options = torch.linspace(-1, 1, 40), {"tolerance": 1e-7}
    sums = {}
    for seed in SEEDS:
        case = Restoring(rows=40, seed=seed, steepness=2.0)
        single = case.to(torch.float32)
        got, plain = (gradients(single, name, upstream, **options) for name in (backend, "reference"))
        truth = gradients(single.to(torch.float64), "reference", upstream, **options)
        for name, value in truth.items():
            errors = [((g[name].double() - value).norm() / value.norm()).item() ** 2 for g in (got, plain)]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0, 0.0]), errors)]
    for name, (error, expected) in sums.items():
        allowed = 2 * expected**0.5 + 4 * torch.finfo(torch.float32).eps * len(SEEDS) ** 0.5
        assert error**0.5 <= allowed, f"{name}: error {error**0.5:.3g} exceeds {allowed:.3g}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_density_carries_a_gradient(backend):
    case = Restoring(rows=4)
    case.context.requires_grad_()
    found = density(case, backend)
    assert [value.requires_grad for value in found] == [False, True, False, False, False, False]
    (grad,) = torch.autograd.grad(found.log_density.sum(), case.context, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(grad.sum(), case.context)
    assert not density(case, backend, point=torch.full((4,), 0.5).double(), inverse=True).point.requires_grad


def test_parts_of_the_backward_pass_add_up(monkeypatch):
    from fastcsm.ops import conditional_density as op

    case = Restoring(rows=50)
    whole = gradients(case)
    monkeypatch.setattr(op, "_PART", 7)
    same_gradients(gradients(case), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 99), rows=st.integers(2, 30))
def test_rows_are_independent(backend, seed, rows):
    case = Restoring(rows=rows, seed=seed).to(torch.float32)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    whole = density(case, backend)
    case.context, case.x = case.context[order], case.x[order]
    for a, b in zip(density(case, backend), (value[order] for value in whole)):
        if backend == "cpu":
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("given", [(1,), (2,), (3,), (3, True)])
@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_for_any_number_of_threads(backend, given, threads):
    case = Restoring(rows=100).to(torch.float32)
    expected = density(case, backend)
    threads(*given)
    assert all(torch.equal(a, b) for a, b in zip(density(case, backend), expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_axes_and_layouts(backend):
    case = Restoring(rows=6)
    flat = density(case, backend)
    case.context = torch.stack([case.context] * 2, -1)[..., 0].view(2, 3, -1)
    case.x = case.x.view(2, 3)
    for a, b in zip(density(case, backend), flat):
        assert torch.equal(a.reshape(b.shape), b)
    assert density(case, backend).ends.shape == (2, 3, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    case = Restoring(rows=5)
    head = case.context, case.x, case.weights, case.biases, case.frequencies, case.activation
    options = 1.0, [], -1.0, 1.0, 1e-4, 4, 0.0
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with fastcsm.backend(backend):
        torch.library.opcheck(
            torch.ops.fastcsm.conditional_density.default, (*head, *options, False), test_utils=utils
        )
        torch.library.opcheck(
            torch.ops.fastcsm.conditional_density_backward.default,
            (torch.ones(5, dtype=torch.float64), *head, *options, True, True, True),
            test_utils=utils,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def step(context, x, *params):
        half = len(params) // 2
        return functional.conditional_density(
            context, x, params[:half], params[half:], low=-1.0, high=1.0
        ).log_density.sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with fastcsm.backend(backend):
        for rows in (24, 40):
            leaves = list(Restoring(rows=rows, frequencies=0).leaves().values())
            got = torch.autograd.grad(compiled(*leaves), leaves)
            for a, b in zip(got, torch.autograd.grad(step(*leaves), leaves)):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 1.0}, "low and high must be finite with low < high, got 1.0 and 1.0"),
        ({"high": math.inf}, "low and high must be finite"),
        ({"panels": 0}, r"panels must be in \[1, 16\], got 0"),
        ({"panels": 17}, r"panels must be in \[1, 16\], got 17"),
        ({"tolerance": 0.0}, "tolerance must be a positive number, got 0.0"),
        ({"tolerance": math.nan}, "tolerance must be a positive number, got nan"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        density(Restoring(rows=2), **change)


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True])
def test_reference_on_gpu(inverse):
    case = Restoring(rows=9)
    point = torch.linspace(0.1, 0.9, 9).double() if inverse else case.x
    expected = density(case, "reference", point=point, inverse=inverse)
    for name in ("context", "x", "frequencies"):
        setattr(case, name, getattr(case, name).cuda())
    case.weights, case.biases = ([p.cuda() for p in part] for part in (case.weights, case.biases))
    for a, b in zip(density(case, "reference", point=point.cuda(), inverse=inverse), expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6)
