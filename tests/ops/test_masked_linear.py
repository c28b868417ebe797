import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, NAMES, assert_as_accurate, backend_params

import fastcsm
from fastcsm import functional
from fastcsm.activations import ACTIVATIONS

BACKENDS = backend_params("masked_linear")
SHAPES = [(0, 3, 4), (1, 1, 1), (5, 7, 3), (33, 16, 17), (64, 65, 48), (129, 31, 128)]


def inputs(rows, features, outputs, sort=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def degrees(n):
        d = torch.randint(0, 6, (n,), generator=generator)
        return d.sort().values if sort else d

    tensors = {"x": randn(rows, features), "weight": randn(outputs, features), "bias": randn(outputs)}
    return tensors, (degrees(features), degrees(outputs)), randn(rows, outputs)


def results(y, leaves, upstream):
    return {"y": y.detach(), **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), upstream)))}


def fused(tensors, degrees, upstream, activation, backend):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    with fastcsm.backend(backend):
        y = functional.masked_linear(*leaves.values(), *degrees, activation=activation)
        return results(y, leaves, upstream)


def plain(tensors, degrees, upstream, activation):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    mask = (degrees[0][None] <= degrees[1][:, None]).to(upstream.dtype)
    y = torch.nn.functional.linear(leaves["x"], leaves["weight"] * mask, leaves["bias"])
    return results(ACTIVATIONS[activation].f(y) if activation else y, leaves, upstream)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy(backend, activation, dtype):
    for shape in SHAPES:
        for sort in (True, False):
            tensors, degrees, upstream = inputs(*shape, sort=sort)
            tensors = {name: value.to(dtype) for name, value in tensors.items()}
            exact = {name: value.double() for name, value in tensors.items()}
            upstream = upstream.to(dtype)
            assert_as_accurate(
                fused(tensors, degrees, upstream, activation, backend),
                plain(tensors, degrees, upstream, activation),
                plain(exact, degrees, upstream.double(), activation),
            )


@pytest.mark.parametrize("backend", BACKENDS)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.sampled_from([None, *NAMES]))
def test_nothing_crosses_the_mask(backend, features, outputs, seed, activation):
    tensors, degrees, upstream = inputs(3, features, outputs, sort=False, seed=seed)
    outside = degrees[0][None] > degrees[1][:, None]
    base = fused(tensors, degrees, upstream, activation, backend)
    assert (base["weight"][outside] == 0).all()
    tensors["weight"] = tensors["weight"].masked_fill(outside, float("nan"))
    changed = fused(tensors, degrees, upstream, activation, backend)
    for name, value in base.items():
        assert torch.equal(changed[name], value), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_input_stays_within_its_edges(backend):
    tensors, degrees, upstream = inputs(4, 6, 5, sort=False)
    clean = fused(tensors, degrees, upstream, "tanh", backend)
    tensors["x"][2, 3] = float("nan")
    dirty = fused(tensors, degrees, upstream, "tanh", backend)
    rows = torch.arange(4) != 2
    assert torch.equal(dirty["y"][rows], clean["y"][rows])
    outside = degrees[0][None] > degrees[1][:, None]
    assert (dirty["weight"][outside] == 0).all()


@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, activation):
    tensors, degrees, _ = inputs(3, 4, 5)
    leaves = [value.requires_grad_() for value in tensors.values()]
    with fastcsm.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: functional.masked_linear(*values, *degrees, activation=activation), leaves
        )


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_one_input_only(backend, needed):
    tensors, degrees, upstream = inputs(5, 7, 3)
    expected = plain(tensors, degrees, upstream, "silu")
    tensors[needed].requires_grad_()
    with fastcsm.backend(backend):
        y = functional.masked_linear(*tensors.values(), *degrees, activation="silu")
    torch.testing.assert_close(torch.autograd.grad(y, tensors[needed], upstream)[0], expected[needed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_raise(backend):
    tensors, degrees, upstream = inputs(5, 7, 3)
    leaves = [value.requires_grad_() for value in tensors.values()]
    with fastcsm.backend(backend):
        y = functional.masked_linear(*leaves, *degrees, activation="silu")
        (grad,) = torch.autograd.grad(y, leaves[0], upstream, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(grad.sum() + y.sum(), leaves[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_axes_layouts_and_no_bias(backend):
    tensors, degrees, _ = inputs(12, 7, 3)
    x, weight, _ = tensors.values()
    with fastcsm.backend(backend):
        expected = functional.masked_linear(x, weight, torch.zeros(3, dtype=torch.float64), *degrees)
        strided = x.t().contiguous().t().reshape(3, 4, 7)
        got = functional.masked_linear(strided, weight.t().contiguous().t(), None, *degrees)
        single = functional.masked_linear(x[0], weight, None, *degrees)
    assert got.shape == (3, 4, 3)
    torch.testing.assert_close(got.reshape(12, 3), expected)
    torch.testing.assert_close(single, expected[0])


@pytest.mark.parametrize("activation", ["identity", "gelu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, activation):
    tensors, degrees, upstream = inputs(5, 7, 3)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.fastcsm
    x, weight, bias = tensors.values()
    with fastcsm.backend(backend):
        torch.library.opcheck(
            ops.masked_linear.default, (x, weight, bias, *degrees, activation), test_utils=utils
        )
        _, preactivation = ops.masked_linear(x, weight, bias, *degrees, activation)
        for needs in ((True, True, True), (False, True, False)):
            args = (upstream, preactivation, x, weight, *degrees, activation, *needs)
            torch.library.opcheck(ops.masked_linear_backward.default, args, test_utils=utils)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def layer(x, weight, bias, *degrees):
        return functional.masked_linear(x, weight, bias, *degrees, activation="silu").sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with fastcsm.backend(backend):
        for rows in (24, 40):
            tensors, degrees, _ = inputs(rows, 9, 11)
            leaves = [value.requires_grad_() for value in tensors.values()]
            got = torch.autograd.grad(compiled(*leaves, *degrees), leaves)
            expected = torch.autograd.grad(layer(*leaves, *degrees), leaves)
            for a, b in zip(got, expected):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 4)}, ValueError, r"x must have shape \(..., 3\) to match weight, got \(2, 4\)"),
        ({"x": torch.zeros(2, 3).long()}, TypeError, "x must have a floating dtype, got torch.int64"),
        ({"weight": torch.zeros(3)}, ValueError, "weight must have 2 axes"),
        ({"weight": torch.zeros(5, 3).double()}, TypeError, "weight must be torch.float32 on cpu"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(5,\), got \(3,\)"),
        ({"in_degrees": torch.zeros(3)}, TypeError, "in_degrees must be int64 on cpu, got torch.float32"),
        ({"out_degrees": torch.zeros(4).long()}, ValueError, r"out_degrees must have shape \(5,\)"),
        ({"activation": "identity"}, ValueError, "activation must be one of"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "x": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "bias": torch.zeros(5),
        "in_degrees": torch.zeros(3, dtype=torch.int64),
        "out_degrees": torch.zeros(5, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        functional.masked_linear(**(arguments | change))
