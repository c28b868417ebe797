import pytest
import torch
from support import (
    DTYPES,
    ISAS,
    SEEDS,
    Case,
    assert_as_accurate,
    backend_params,
    bitwise_equal,
    plain_loss,
    with_gradients,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastcsm
from fastcsm import backends, functional
from fastcsm.ops import linear_csm_loss as op

BACKENDS = backend_params("linear_csm_loss")
COMPILED = BACKENDS[1:]
WITH_TRITON = backend_params("linear_csm_loss", "cpu", "triton")


@pytest.fixture
def blocks(monkeypatch):
    """Sets the number of dimensions in a block, or None for the usual rule."""

    def block(size):
        if size is not None:
            monkeypatch.setattr(op, "block_size", lambda *_: size)

    return block


class LinearCase:
    """A masked layer, then random rows and a random head; the same numbers, rounded, in every dtype."""

    def __init__(self, batch=5, dimensions=7, features=6, extra=1, units=9, shuffled=False, seed=0, **head):
        self.head = Case(batch * dimensions, features + extra, seed=seed, **head)
        self.batch, self.dimensions, self.features, self.extra = batch, dimensions, features, extra
        torch.manual_seed(seed)
        order = torch.randperm(dimensions) if shuffled else torch.arange(dimensions)
        self.in_degrees = 1 + torch.arange(units) * max(dimensions - 1, 1) // units
        self.out_degrees = order.repeat_interleave(features)
        shapes = {"hidden": (batch, units), "weight": (dimensions * features, units)}
        shapes["bias"] = (dimensions * features,)
        self.layer = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def to(self, dtype):
        other = object.__new__(LinearCase)
        other.__dict__ |= self.__dict__ | {"head": self.head.to(dtype)}
        other.layer = {name: value.to(dtype) for name, value in self.layer.items()}
        return other

    def leaves(self):
        head = self.head.leaves()
        del head["context"]
        layer = {name: value.clone().requires_grad_() for name, value in self.layer.items()}
        return layer | head

    def rows(self, value):
        return value.unflatten(0, (self.batch, self.dimensions))

    def loss(self, leaves, **changes):
        weights = [value for name, value in leaves.items() if name.startswith("weights")]
        biases = [value for name, value in leaves.items() if name.startswith("biases")]
        options = {
            "extra": self.rows(self.head.context[:, self.features :]) if self.extra else None,
            "activation": self.head.activation,
            "frequencies": self.head.frequencies,
            **{name: self.rows(getattr(self.head, name)) for name in ("alpha", "beta", "gamma")},
        }
        return functional.linear_csm_loss(
            leaves["hidden"],
            leaves["weight"],
            leaves["bias"],
            self.in_degrees,
            self.out_degrees,
            self.rows(leaves["x"]),
            weights,
            biases,
            **(options | changes),
        )

    def fused(self, backend, upstream=1.0):
        leaves = self.leaves()
        with fastcsm.backend(backend):
            return with_gradients(self.loss(leaves), leaves, upstream)

    def plain(self, upstream=1.0):
        leaves = self.leaves()
        mask = (self.in_degrees <= self.out_degrees[:, None]).to(leaves["x"].dtype)
        y = F.linear(leaves["hidden"], leaves["weight"] * mask, leaves["bias"])
        context = y.reshape(-1, self.features)
        context = torch.cat([context, self.head.context[:, self.features :]], 1)
        return with_gradients(plain_loss(self.head, {"context": context, **leaves}), leaves, upstream)

    def args(self, *need):
        head = self.head
        extra = head.context[:, self.features :].contiguous()
        layer = *self.layer.values(), self.in_degrees, self.out_degrees
        rest = head.weights, head.biases, head.frequencies, head.activation
        return *layer, extra, head.x, *rest, head.alpha, head.beta, head.gamma, *need


def check(backend, dtype, **settings):
    cases = []
    for seed in SEEDS:
        case = LinearCase(seed=seed, **settings).to(dtype)
        cases.append((case.fused(backend), case.plain(), case.to(torch.float64).plain()))
    assert_as_accurate(*cases)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy(backend, size, extra, shuffled, dtype, blocks):
    blocks(size)
    check(backend, dtype, extra=extra, shuffled=shuffled)


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0},
        {"batch": 1},
        {"batch": 1, "dimensions": 1},
        {"dimensions": 1},
        {"features": 1, "extra": 0},
        {"batch": 33, "dimensions": 5, "features": 17, "units": 65},
        {"batch": 3, "dimensions": 40, "units": 12},
        {"frequencies": 0, "hidden": (31,)},
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, shape, blocks):
    blocks(2)
    check(backend, torch.float32, **shape)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_medium_precision_is_as_accurate_as_bfloat16(precision, blocks):
    precision("medium")
    blocks(3)
    cases = []
    for seed in SEEDS:
        case = LinearCase(batch=20, units=40, seed=seed, hidden=(40, 33))
        baseline = {name: value.float() for name, value in case.to(torch.bfloat16).plain().items()}
        cases.append((case.to(torch.float32).fused("cpu"), baseline, case.plain()))
    assert_as_accurate(*cases)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, extra, blocks):
    blocks(2)
    case = LinearCase(2, 3, 2, extra, units=4, hidden=(3, 2), frequencies=1)
    leaves = case.leaves()
    with fastcsm.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: case.loss(dict(zip(leaves, values))), tuple(leaves.values())
        )


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_coefficients_may_be_omitted_or_numbers(backend, blocks):
    blocks(3)
    case = LinearCase()
    case.head.alpha, case.head.beta, case.head.gamma = (
        torch.tensor([value], dtype=torch.float64) for value in (1.0, 1.0, 0.0)
    )
    expected = case.plain()["loss"]
    with fastcsm.backend(backend):
        omitted = {"alpha": None, "beta": None, "gamma": None}
        case.rows = lambda value: value.unflatten(0, (5, 7)) if len(value) == 35 else value
        torch.testing.assert_close(case.loss(case.leaves(), **omitted), expected)
        torch.testing.assert_close(case.loss(case.leaves(), alpha=1.0, beta=1, gamma=0), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_and_extra_features_may_require_gradients(backend):
    case = LinearCase()
    expected = case.plain()
    leaves = case.leaves()
    case.head.context.requires_grad_()
    case.head.gamma.requires_grad_()
    with fastcsm.backend(backend):
        loss = case.loss(leaves)
        grads = torch.autograd.grad(loss, [case.head.context, case.head.gamma, *leaves.values()])
    assert grads[0][:, -1].all()
    assert grads[1].all()
    for name, grad in zip(leaves, grads[2:]):
        torch.testing.assert_close(grad, expected[name])


@pytest.mark.parametrize("needed", ["hidden", "weight", "bias", "x", "weights[1]", "biases[0]"])
@pytest.mark.parametrize("backend", WITH_TRITON)
def test_gradient_of_one_input_only(backend, needed, blocks):
    blocks(3)
    case = LinearCase()
    leaves = case.leaves()
    for name, value in leaves.items():
        value.requires_grad_(name == needed)
    with fastcsm.backend(backend):
        (grad,) = torch.autograd.grad(case.loss(leaves), leaves[needed])
    torch.testing.assert_close(grad, case.plain()[needed], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(backend, blocks):
    blocks(3)
    case = LinearCase()
    leaves = case.leaves()
    with fastcsm.backend(backend), torch.no_grad():
        loss = case.loss(leaves)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, case.plain()["loss"])


@pytest.mark.parametrize("upstream", [1.0, -2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_is_right_whatever_became_of_the_first(backend, upstream, blocks):
    blocks(3)
    case = LinearCase()
    expected = case.plain(upstream)
    leaves = case.leaves()
    with fastcsm.backend(backend):
        loss = case.loss(leaves) * upstream
    for _ in range(3):
        for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)):
            torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-10)
            grad.zero_()


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_raise(backend):
    case = LinearCase()
    leaves = case.leaves()
    with fastcsm.backend(backend):
        (grad,) = torch.autograd.grad(case.loss(leaves), leaves["hidden"], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad((grad**2).sum(), leaves["weight"])


@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_for_any_number_of_threads(backend, threads, blocks):
    blocks(3)
    case = LinearCase(batch=64, units=130, features=16, hidden=(64, 64)).to(torch.float32)
    results = []
    for count, own in ((1, False), (2, False), (2, True)):
        threads(count, own)
        results.append(case.fused(backend))
    assert all(bitwise_equal(results[0], other) for other in results[1:])


class Largest(TorchDispatchMode):
    """The sizes of the tensors that ops return."""

    def __init__(self):
        super().__init__()
        self.numels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves(result)
        self.numels += [
            t.untyped_storage().nbytes() // t.element_size() for t in tensors if torch.is_tensor(t)
        ]
        return result


@pytest.mark.parametrize("backend", COMPILED)
def test_the_context_never_exists_as_a_whole(backend, monkeypatch):
    monkeypatch.setattr(op, "CONTEXT_BYTES", 1 << 16)
    case = LinearCase(batch=64, dimensions=96, features=31, units=8, frequencies=0, hidden=(8,))
    args = case.to(torch.float32).args(True, True, True, True)
    with fastcsm.backend(backend):
        run = backends.select("linear_csm_loss", backends.Request("cpu", torch.float32, (8, 1)))
    with torch.no_grad(), Largest() as recorded:
        run(*args)
    weights = 96 * 31 * 8
    assert max(recorded.numels) == weights
    assert max(n for n in recorded.numels if n != weights) <= (1 << 16) / 4


def test_blocks_are_bounded():
    weight = torch.empty(0, 1024)
    assert op.block_size(64, weight, 32) == 128
    assert op.block_size(64, torch.empty(0, 8), 32) == 512
    assert op.block_size(10**6, weight, 32) == 1
    assert op.block_size(1, torch.empty(0, 10**6), 64) == 1
    assert op.block_size(0, weight, 32) == 128
    # Elsewhere it is the contexts, twice, and their gradient, twice, that are within 256 MiB.
    weight = torch.empty(0, 1024, device="meta")
    assert op.block_size(128, weight, 32) == 2**28 // (4 * 128 * 32 * 4)
    assert op.block_size(10**9, weight, 33) == 1


@pytest.mark.parametrize("need", [(True, True, True, True), (False,) * 4, (False, True, False, True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, need, blocks):
    blocks(3)
    with fastcsm.backend(backend):
        torch.library.opcheck(
            torch.ops.fastcsm.linear_csm_loss.default,
            LinearCase().to(torch.float32).args(*need),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def loss(case, leaves):
        return 3 * case.loss(leaves, alpha=0.5, beta=None, gamma=None)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(
        lambda hidden, weight, bias, degrees, x, weights, biases: functional.linear_csm_loss(
            hidden, weight, bias, *degrees, x, weights, biases, alpha=0.5
        ),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    with fastcsm.backend(backend):
        for batch in (24, 40):
            case = LinearCase(batch=batch, extra=0, frequencies=0)
            leaves = case.leaves()
            named = list(leaves.items())
            got = compiled(
                *(value for _, value in named[:3]),
                (case.in_degrees, case.out_degrees),
                case.rows(leaves["x"]),
                [value for name, value in named if name.startswith("weights")],
                [value for name, value in named if name.startswith("biases")],
            )
            grads = torch.autograd.grad(3 * got, list(leaves.values()))
            for a, b in zip(grads, torch.autograd.grad(loss(case, leaves), list(leaves.values()))):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


ARGUMENTS = {
    "hidden": torch.zeros(2, 5),
    "weight": torch.zeros(12, 5),
    "bias": None,
    "in_degrees": torch.zeros(5).long(),
    "out_degrees": torch.zeros(12).long(),
    "x": torch.zeros(2, 4),
    "weights": [torch.zeros(8, 4), torch.zeros(1, 8)],
    "biases": [None, None],
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 6)}, ValueError, r"hidden must have shape \(..., 5\) to match weight"),
        ({"x": torch.zeros(3, 4)}, ValueError, r"x must have shape \(..., D\) .* \(2, 5\), got \(3, 4\)"),
        ({"x": torch.zeros(2, 0)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(2, 5)}, ValueError, "weight must have D .* multiple of x's 5 dimensions, got 12"),
        ({"x": torch.zeros(2, 4).double()}, TypeError, "x must be torch.float32 on cpu"),
        ({"extra": torch.zeros(2, 4)}, ValueError, "extra must have 3 axes"),
        ({"extra": torch.zeros(2, 3, 1)}, ValueError, r"extra must have shape \(2, 4, 1\), got \(2, 3, 1\)"),
        ({"extra": torch.zeros(2, 4, 1)}, ValueError, r"weights\[0\] must have shape \(8, 5\), got \(8, 4\)"),
        ({"alpha": torch.zeros(3)}, ValueError, "alpha must broadcast"),
    ],
)
def test_bad_arguments(change, error, message):
    assert functional.linear_csm_loss(**ARGUMENTS) == 0
    with pytest.raises(error, match=message):
        functional.linear_csm_loss(**(ARGUMENTS | change))


def test_a_scaled_loss_scales_gradients_before_float16_rounds_them():
    case, scale = LinearCase(), 2.0**20  # as torch.amp.GradScaler does
    for name in ("alpha", "beta", "gamma"):
        setattr(case.head, name, 1e-7 * getattr(case.head, name))
    truth, got = case.plain(), case.to(torch.float16).fused("reference", upstream=scale)
    for name in case.leaves():
        assert (got[name].double() / scale - truth[name]).norm() < 0.01 * truth[name].norm(), name
