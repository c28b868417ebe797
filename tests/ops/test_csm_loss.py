import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import fused, fused_loss, plain
from support import (
    DTYPES,
    HIDDEN,
    ISAS,
    NAMES,
    ROWS,
    SEEDS,
    Case,
    assert_as_accurate,
    backend_params,
    bitwise_equal,
    plain_score_head,
    triton_cases,
)

import fastcsm
from fastcsm import functional

BACKENDS = backend_params("csm_loss")
COMPILED = BACKENDS[1:]
WITH_TRITON = backend_params("csm_loss", "cpu", "triton")
TRITON = WITH_TRITON[2:]


def named(results):
    """The loss and the gradients that heads of any depth have."""
    return {name: results[name] for name in ("loss", "context", "x", "weights[0]", "weights[1]", "biases[0]")}


def check(backend, dtype, **settings):
    cases = []
    for seed in SEEDS:
        case = Case(seed=seed, **settings).to(dtype)
        cases.append((fused(case, backend), plain(case), plain(case.to(torch.float64))))
    assert_as_accurate(*cases)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_activation_and_depth(backend, activation, hidden, dtype):
    for frequencies in (0, 3):
        check(backend, dtype, hidden=hidden, activation=activation, frequencies=frequencies)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_at_every_edge(backend):
    cases = []
    for settings in triton_cases():
        case = Case(**settings)
        cases.append((named(fused(case, backend)), named(plain(case)), named(plain(case))))
    assert_as_accurate(*cases, relative=True)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_sums_of_gradients(backend):
    case = Case(rows=200, hidden=(9, 6)).to(torch.float32)
    results = fused(case, backend)
    assert_as_accurate((results, plain(case), plain(case.to(torch.float64))))
    assert bitwise_equal(results, fused(case, backend))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_number_of_rows(backend, rows):
    check(backend, torch.float32, rows=rows, hidden=(32, 48))
    check(backend, torch.bfloat16, rows=rows, hidden=(31,), frequencies=0)


@pytest.mark.parametrize("context", [0, 1, 15, 16, 17, 33])
@pytest.mark.parametrize("hidden", [(1,), (1, 1), (128, 128), (130, 257), (16, 32, 64)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width(backend, hidden, context):
    check(backend, torch.float32, rows=70, context=context, hidden=hidden, frequencies=5)


@pytest.mark.parametrize("zeros", [slice(None), slice(0, 100), slice(150, None), slice(199, None)])
@pytest.mark.parametrize("frequencies", [0, 3])
@pytest.mark.parametrize("backend", WITH_TRITON)
def test_rows_without_the_derivative(backend, frequencies, zeros):
    """Tiles of rows whose beta is 0 need no tangents, beside tiles that do."""
    for dtype in (torch.float64,) if backend == "triton" else (torch.float32, torch.float64):
        cases = []
        for seed in SEEDS[:2]:
            case = Case(rows=200, hidden=(17, 9, 12), frequencies=frequencies, seed=seed)
            case.beta[zeros] = 0
            case = case.to(dtype)
            cases.append((fused(case, backend), plain(case), plain(case.to(torch.float64))))
        assert_as_accurate(*cases, relative=True)


@pytest.mark.parametrize("backend", COMPILED)
def test_many_rows(backend):
    check(backend, torch.float32, rows=3000, context=32, hidden=(64, 64), activation="softplus")


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, activation):
    case = Case(rows=3, context=2, hidden=(3, 2), frequencies=2, activation=activation)
    leaves = case.leaves()
    with fastcsm.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: fused_loss(case, dict(zip(leaves, values))), tuple(leaves.values())
        )


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_saturated_rows_stay_finite(backend, activation):
    case = Case(activation=activation, frequencies=0)
    case.x = torch.tensor([0.0, 1e-30, 1e3, -1e3, 1e6, -1e6, 1e12, -1e12])
    case.context = torch.zeros(8, 6)
    case.alpha = case.beta = case.gamma = torch.ones(8)
    assert all(value.isfinite().all() for value in fused(case.to(torch.float32), backend).values())


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_nan_stays_in_its_row(backend):
    case = Case(rows=40).to(torch.float32)
    clean = fused(case, backend)
    case.x[17] = float("nan")
    dirty = fused(case, backend)
    others = torch.arange(40) != 17
    assert dirty["loss"].isnan()
    for name in ("context", "x"):
        assert dirty[name][17].isnan().all()
        assert torch.equal(dirty[name][others], clean[name][others])


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_integers_are_exact(backend):
    case = Case(rows=33, hidden=(20, 12), frequencies=0, activation="relu")
    case.context, case.x = (2 * case.context).round(), (2 * case.x).round()
    for tensors in (case.weights, case.biases):
        tensors[:] = [(2 * t).round() for t in tensors]
    case.alpha, case.beta, case.gamma = (2 * t.round() for t in (case.alpha, case.beta, case.gamma))
    exact = plain(case)
    for name, value in fused(case.to(torch.float32), backend).items():
        assert torch.equal(value.double(), exact[name]), name


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_coefficients_may_be_omitted_numbers_or_broadcast(backend):
    case = Case(rows=12)
    score, derivative = plain_score_head(case, case.leaves())
    s, ds = score.detach().reshape(3, 4), derivative.detach().reshape(3, 4)
    column = torch.tensor([[1.0], [2.0], [3.0]])

    def loss(**coefficients):
        with fastcsm.backend(backend):
            return functional.csm_loss(
                case.context.reshape(3, 4, 6),
                case.x.reshape(3, 4),
                case.weights,
                case.biases,
                frequencies=case.frequencies,
                **coefficients,
            )

    torch.testing.assert_close(loss(), (s * s / 2 + ds).sum())
    torch.testing.assert_close(loss(alpha=3, beta=0.5, gamma=2.0), (3 * s * s / 2 + ds / 2 + 2 * s).sum())
    torch.testing.assert_close(loss(alpha=column, beta=0.0), (column * s * s / 2).sum())
    torch.testing.assert_close(loss(alpha=torch.tensor(2.0), beta=0.0), (s * s).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_may_require_gradients(backend):
    case = Case(rows=12)
    case.gamma.requires_grad_()
    s, _ = plain_score_head(case, case.leaves())
    leaves = case.leaves()
    with fastcsm.backend(backend):
        loss = fused_loss(case, leaves)
        grad_gamma, grad_x = torch.autograd.grad(loss, [case.gamma, leaves["x"]])
    torch.testing.assert_close(grad_gamma, s.detach())
    torch.testing.assert_close(grad_x, plain(case)["x"])


@pytest.mark.parametrize("needed", ["context", "x", "weights[1]", "biases[0]"])
@pytest.mark.parametrize("backend", WITH_TRITON)
def test_gradient_of_one_input_only(backend, needed):
    case = Case()
    leaves = case.leaves()
    for name, value in leaves.items():
        value.requires_grad_(name == needed)
    with fastcsm.backend(backend):
        (grad,) = torch.autograd.grad(fused_loss(case, leaves), leaves[needed])
    torch.testing.assert_close(grad, plain(case)[needed], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(backend):
    case = Case()
    leaves = case.leaves()
    expected = plain(case)["loss"]
    with fastcsm.backend(backend):
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                loss = fused_loss(case, leaves)
                assert not loss.requires_grad
                torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_for_any_number_of_threads(backend, threads):
    case = Case(rows=1000, hidden=(64, 64)).to(torch.float32)
    results = []
    for count, own in ((1, False), (2, False), (2, True)):
        threads(count, own)
        results.append(fused(case, backend))
    assert all(bitwise_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_medium_precision_is_as_accurate_as_bfloat16(activation, precision):
    precision("medium")
    cases = []
    for seed in SEEDS:
        case = Case(rows=70, hidden=(40, 33), activation=activation, seed=seed)
        baseline = {name: value.float() for name, value in plain(case.to(torch.bfloat16)).items()}
        cases.append((fused(case.to(torch.float32), "cpu"), baseline, plain(case)))
    assert_as_accurate(*cases)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_every_instruction_set_is_as_accurate(activation, dtype):
    check("cpu", dtype, activation=activation, rows=65)


@pytest.mark.parametrize("backend", BACKENDS)
@given(rows=st.integers(1, 80), cut=st.integers(0, 80), seed=st.integers(0, 100), name=st.sampled_from(NAMES))
def test_adds_over_rows_in_any_order(backend, rows, cut, seed, name):
    case = Case(rows=rows, seed=seed, activation=name)
    whole = fused(case, backend)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    parts = []
    for part in (order[:cut], order[cut:]):
        some = Case(rows=rows, seed=seed, activation=name)
        for key in ("context", "x", "alpha", "beta", "gamma"):
            setattr(some, key, getattr(case, key)[part])
        parts.append(fused(some, backend))
    for key, value in whole.items():
        if key in ("context", "x"):
            value, joined = value[order], torch.cat([p[key] for p in parts])
        else:
            joined = parts[0][key] + parts[1][key]
        torch.testing.assert_close(joined, value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("needs", [(True, True, True), (False, False, False), (True, False, True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, needs):
    c = Case(rows=5).to(torch.float32)
    args = c.context, c.x, c.weights, c.biases, c.frequencies, c.activation, c.alpha, c.beta, c.gamma, *needs
    with fastcsm.backend(backend):
        torch.library.opcheck(
            torch.ops.fastcsm.csm_loss.default,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def loss(context, x, *params):
        half = len(params) // 2
        return 3 * functional.csm_loss(context, x, params[:half], params[half:], alpha=0.5)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with fastcsm.backend(backend):
        for rows in (24, 40):
            leaves = list(Case(rows=rows, frequencies=0).leaves().values())
            got = torch.autograd.grad(compiled(*leaves), leaves)
            expected = torch.autograd.grad(loss(*leaves), leaves)
            for a, b in zip(got, expected):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
