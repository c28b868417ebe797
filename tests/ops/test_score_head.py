import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
    split,
    triton_cases,
)

import fastcsm
from fastcsm import functional
from fastcsm.reference import score_head as reference

BACKENDS = backend_params("score_head")
COMPILED = BACKENDS[1:]
WITH_TRITON = backend_params("score_head", "cpu", "triton")
TRITON = WITH_TRITON[2:]


def outputs(case, scores, leaves):
    """Outputs and gradients of one pair of upstream gradients, as a dict."""
    grads = torch.autograd.grad(scores, list(leaves.values()), case.grads, materialize_grads=True)
    return {"score": scores[0], "derivative": scores[1], **dict(zip(leaves, grads))}


def fused(case, backend):
    leaves = case.leaves()
    with fastcsm.backend(backend):
        scores = functional.score_head(
            *split(leaves), activation=case.activation, frequencies=case.frequencies
        )
        return outputs(case, scores, leaves)


def plain(case):
    leaves = case.leaves()
    return outputs(case, plain_score_head(case, leaves), leaves)


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


@pytest.mark.parametrize("frequencies", [0, 3])
@pytest.mark.parametrize("backend", WITH_TRITON)
def test_gradients_of_the_score_alone(backend, frequencies):
    case = Case(rows=70, hidden=(17, 9, 12), frequencies=frequencies)
    found = []
    for run, dtype in ((backend, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        own = case.to(dtype)
        leaves = own.leaves()
        options = {"activation": own.activation, "frequencies": own.frequencies}
        with fastcsm.backend(run):
            s, _ = functional.score_head(*split(leaves), **options)
            grads = torch.autograd.grad(s, list(leaves.values()), own.grads[0])
            alone = functional.score(*split(leaves), **options)
            own_grads = torch.autograd.grad(alone, list(leaves.values()), own.grads[0])
        assert all(torch.equal(a, b) for a, b in zip(grads, own_grads, strict=True))
        found.append({"score": alone.detach(), **dict(zip(leaves, grads))})
    assert_as_accurate(tuple(found), relative=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_score_alone(backend, hidden, dtype):
    for frequencies in (0, 3):
        cases = []
        for seed in SEEDS:
            case = Case(hidden=hidden, frequencies=frequencies, seed=seed).to(dtype)
            results = []
            for name, own in ((backend, case), ("reference", case), ("reference", case.to(torch.float64))):
                rows = own.context, own.x, own.weights, own.biases
                with fastcsm.backend(name):
                    s = functional.score(*rows, activation=own.activation, frequencies=own.frequencies)
                results.append({"score": s})
            cases.append(tuple(results))
        assert_as_accurate(*cases)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_at_every_edge(backend):
    names = ("score", "derivative", "context", "x", "weights[0]", "weights[1]", "biases[0]", "biases[1]")
    cases = []
    for settings in triton_cases():
        case = Case(**settings)
        results = fused(case, backend), plain(case), plain(case)
        cases.append([{name: result[name] for name in names} for result in results])
    assert_as_accurate(*cases, relative=True)


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


@pytest.mark.parametrize("activation", NAMES)
def test_tangent_is_the_derivative(activation):
    case = Case(activation=activation)
    leaves = case.leaves()
    score, derivative = plain_score_head(case, leaves)
    (by_autograd,) = torch.autograd.grad(score.sum(), leaves["x"])
    torch.testing.assert_close(derivative, by_autograd, rtol=1e-12, atol=1e-12)

    def head(x):
        rest = leaves | {"x": x}
        return plain_score_head(case, rest)[0]

    _, by_forward_mode = torch.func.jvp(head, (case.x,), (torch.ones_like(case.x),))
    torch.testing.assert_close(derivative, by_forward_mode, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", NAMES)
def test_reference_gradients_equal_double_backward(activation):
    case = Case(activation=activation, hidden=(9, 7))
    leaves = case.leaves()
    context, x, weights, biases = split(leaves)
    h = torch.cat([context, x[:, None]], 1)
    phase = x[:, None] * case.frequencies
    h = torch.cat([h, phase.sin(), phase.cos()], 1)
    module = {
        "softplus": torch.nn.Softplus(),
        "tanh": torch.nn.Tanh(),
        "silu": torch.nn.SiLU(),
        "gelu": torch.nn.GELU(approximate="tanh"),
        "elu": torch.nn.ELU(),
        "relu": torch.nn.ReLU(),
        "sigmoid": torch.nn.Sigmoid(),
    }[activation]
    for weight, bias in zip(weights[:-1], biases[:-1]):
        h = module(torch.nn.functional.linear(h, weight, bias))
    score = torch.nn.functional.linear(h, weights[-1], biases[-1])[:, 0]
    (derivative,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    expected = outputs(case, (score, derivative), leaves)
    for name, value in fused(case, "reference").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_at_zero_preactivation(backend, activation):
    case = Case(activation=activation, hidden=(4,), frequencies=0)
    case.weights[0][:, :-1] = 0
    case.biases[0][:] = 0
    case.x[:] = 0
    assert_as_accurate((fused(case, backend), plain(case), plain(case)))


@pytest.mark.parametrize("frequencies", [0, 2])
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, activation, frequencies):
    case = Case(rows=3, context=2, hidden=(3, 2), frequencies=frequencies, activation=activation)
    leaves = case.leaves()

    def head(*values):
        return functional.score_head(
            *split(dict(zip(leaves, values))), activation=activation, frequencies=case.frequencies
        )

    with fastcsm.backend(backend):
        assert torch.autograd.gradcheck(head, tuple(leaves.values()))


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("activation", NAMES)
def test_saturated_rows_stay_finite(backend, activation):
    case = Case(activation=activation, frequencies=0)
    case.x = torch.tensor([0.0, 1e-30, 1e3, -1e3, 1e6, -1e6, 1e15, -1e15])
    case.context = torch.zeros(8, 6)
    case.grads = torch.ones(8), torch.ones(8)
    result = fused(case.to(torch.float32), backend)
    assert all(value.isfinite().all() for value in result.values())


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_nan_stays_in_its_row(backend):
    case = Case(rows=40).to(torch.float32)
    clean = fused(case, backend)
    case.x[17] = float("nan")
    dirty = fused(case, backend)
    others = torch.arange(40) != 17
    for name in ("score", "derivative", "context", "x"):
        assert dirty[name][17].isnan().all()
        assert torch.equal(dirty[name][others], clean[name][others])
    assert dirty["weights[0]"].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_are_exact(backend):
    case = Case(rows=33, hidden=(20, 12), frequencies=0, activation="relu")
    for name in ("context", "x"):
        setattr(case, name, (4 * getattr(case, name)).round())
    for tensors in (case.weights, case.biases):
        tensors[:] = [(3 * t).round() for t in tensors]
    case.grads = tuple((3 * g).round() for g in case.grads)
    exact = plain(case)
    for name, value in fused(case.to(torch.float32), backend).items():
        assert torch.equal(value.double(), exact[name]), name


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_layouts(backend):
    case = Case(rows=30).to(torch.float32)
    expected = fused(case, backend)
    for name in ("context", "x"):
        value = getattr(case, name)
        setattr(case, name, torch.stack([value, -value], -1)[..., 0])
    case.weights[0] = case.weights[0].t().contiguous().t()
    case.biases[0] = torch.stack([case.biases[0]] * 2, -1)[:, 1]
    case.grads = [torch.stack([g, g], -1)[:, 0] for g in case.grads]
    assert not case.context.is_contiguous()
    assert not case.weights[0].is_contiguous()
    assert bitwise_equal(fused(case, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", ["context", "x", "weights[1]"])
def test_gradient_of_one_input_only(backend, needed):
    case = Case()
    leaves = case.leaves()
    for name, value in leaves.items():
        value.requires_grad_(name == needed)
    with fastcsm.backend(backend):
        score, derivative = functional.score_head(*split(leaves), frequencies=case.frequencies)
        grad_score = torch.autograd.grad(score, leaves[needed], case.grads[0], retain_graph=True)[0]
        grad_derivative = torch.autograd.grad(derivative, leaves[needed], case.grads[1])[0]
    torch.testing.assert_close(grad_score + grad_derivative, plain(case)[needed], rtol=1e-10, atol=1e-10)


def test_reference_itself_has_every_derivative():
    case = Case(rows=4)
    leaves = case.leaves()
    _, derivative = plain_score_head(case, leaves)
    (grad,) = torch.autograd.grad(derivative.sum(), leaves["x"], create_graph=True)
    assert torch.autograd.grad(grad.sum(), leaves["x"])[0].isfinite().all()


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


@pytest.mark.parametrize("backend", BACKENDS)
@given(rows=st.integers(1, 80), seed=st.integers(0, 100), name=st.sampled_from(NAMES))
def test_rows_are_independent(backend, rows, seed, name):
    case = Case(rows=rows, seed=seed, activation=name)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    expected = fused(case, backend)
    case.context, case.x, case.grads = case.context[order], case.x[order], [g[order] for g in case.grads]
    permuted = fused(case, backend)
    for key, value in expected.items():
        value = value[order] if key in ("score", "derivative", "context", "x") else value
        torch.testing.assert_close(permuted[key], value, rtol=1e-9, atol=1e-9, msg=key)


def op_args(case):
    return case.context, case.x, case.weights, case.biases, case.frequencies, case.activation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, False)])
def test_opcheck(backend, needs):
    case = Case(rows=5).to(torch.float32)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with fastcsm.backend(backend):
        for derivative in (True, False):
            arguments = *op_args(case), derivative
            torch.library.opcheck(torch.ops.fastcsm.score_head.default, arguments, test_utils=utils)
        torch.library.opcheck(
            torch.ops.fastcsm.score_head_backward.default,
            (*case.grads, *op_args(case), *needs),
            test_utils=utils,
        )


def test_reference_backward_skips_what_is_not_needed():
    case = Case()
    grad_context, grad_x, grad_weights, grad_biases = reference.score_head_backward(
        *case.grads, *op_args(case), False, False, False
    )
    assert grad_context.numel() == grad_x.numel() == 0
    assert grad_weights == grad_biases == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def step(context, x, *params):
        half = len(params) // 2
        s, ds = functional.score_head(context, x, params[:half], params[half:], activation="tanh")
        return (s * ds).sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with fastcsm.backend(backend):
        for rows in (24, 40):
            case = Case(rows=rows, frequencies=0, activation="tanh")
            leaves = list(case.leaves().values())
            got = torch.autograd.grad(compiled(*leaves), leaves)
            expected = torch.autograd.grad(step(*leaves), leaves)
            for a, b in zip(got, expected):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
def test_reference_on_gpu():
    case = Case().to(torch.float32)
    leaves = {name: value.detach().cuda().requires_grad_() for name, value in case.leaves().items()}
    scores = functional.score_head(
        *split(leaves), activation=case.activation, frequencies=case.frequencies.cuda()
    )
    case.grads = [g.cuda() for g in case.grads]
    got = {name: value.cpu() for name, value in outputs(case, scores, leaves).items()}
    expected = fused(Case().to(torch.float32), "reference")
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
