import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, ISAS, NAMES, SEEDS, assert_as_accurate, backend_params, bitwise_equal

import fastcsm
from fastcsm import functional
from fastcsm.activations import ACTIVATIONS

BACKENDS = backend_params("masked_linear")
COMPILED = BACKENDS[1:]
WITH_TRITON = backend_params("masked_linear", "cpu", "triton")
TRITON = WITH_TRITON[2:]
SHAPES = [(0, 3, 4), (1, 1, 1), (5, 7, 3), (33, 16, 17), (64, 65, 48), (129, 31, 128)]

ROWS = (1, 11, 12, 13, 31, 33, 256, 257, 300)
INPUTS = (1, 31, 33, 255, 256, 257, 530)
OUTPUTS = (1, 11, 13, 47, 48, 49, 101)
#: Every pair of (rows, inputs), (rows, outputs) and (inputs, outputs) of sizes about the kernel's tiles.
EDGES = [
    (rows, features, OUTPUTS[(r + i) % len(OUTPUTS)])
    for r, rows in enumerate(ROWS)
    for i, features in enumerate(INPUTS)
]


def spread(n, low, high):
    return low + torch.arange(n) * (high - low + 1) // n


def draw(n, high=40):
    return torch.randint(0, high, (n,))


#: Degrees of n inputs and m outputs, by what is special about them.
DEGREES = {
    "sorted": lambda n, m: (draw(n).sort().values, draw(m).sort().values),
    "unsorted": lambda n, m: (draw(n), draw(m)),
    "inputs unsorted": lambda n, m: (torch.randperm(n), spread(m, 0, n)),
    "outputs unsorted": lambda n, m: (spread(n, 1, 20), draw(m, 21)),
    "ties": lambda n, m: (draw(n, 2), draw(m, 2).sort().values),
    "gaps": lambda n, m: (10**12 * (draw(n, 6) - 3), 10**12 * (draw(m, 6) - 3)),
    "narrow": lambda n, m: (1 + torch.arange(n), spread(m, 1, max(n - 1, 1))),
    "wide": lambda n, m: (spread(n, 1, 3 * m), torch.arange(m)),
    "contexts": lambda n, m: (spread(n, 1, 30), torch.arange(m) // 3),
    "one variable": lambda n, m: (torch.ones(n).long(), torch.zeros(m).long()),
    "none masked": lambda n, m: (torch.zeros(n).long(), torch.ones(m).long()),
}


class Layer:
    """Random arguments of a masked layer, and what comes of them."""

    def __init__(self, rows, features, outputs, degrees="sorted", seed=0):
        torch.manual_seed(seed)
        self.degrees = DEGREES[degrees](features, outputs)
        self.outside = self.degrees[0] > self.degrees[1][:, None]
        shapes = {"x": (rows, features), "weight": (outputs, features), "bias": (outputs,)}
        self.tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self.upstream = torch.randn(rows, outputs, dtype=torch.float64)

    def to(self, dtype):
        """A copy with its numbers rounded to another dtype."""
        other = object.__new__(Layer)
        other.__dict__ |= self.__dict__ | {"upstream": self.upstream.to(dtype)}
        other.tensors = {name: value.to(dtype) for name, value in self.tensors.items()}
        return other

    def leaves(self):
        return {name: value.clone().requires_grad_() for name, value in self.tensors.items()}

    def results(self, y, leaves):
        grads = torch.autograd.grad(y, list(leaves.values()), self.upstream)
        return {"y": y.detach(), **dict(zip(leaves, grads))}

    def fused(self, activation, backend="cpu"):
        """With NaN and infinity in the weights that the mask hides."""
        leaves = self.leaves()
        hidden = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=self.upstream.dtype)
        with torch.no_grad():
            leaves["weight"][self.outside] = hidden[torch.arange(int(self.outside.sum())) % 3]
        with fastcsm.backend(backend):
            y = functional.masked_linear(*leaves.values(), *self.degrees, activation=activation)
            got = self.results(y, leaves)
        assert (got["weight"][self.outside] == 0).all()
        return got

    def plain(self, activation):
        leaves = self.leaves()
        weight = leaves["weight"] * (~self.outside).to(self.upstream.dtype)
        y = torch.nn.functional.linear(leaves["x"], weight, leaves["bias"])
        return self.results(ACTIVATIONS[activation].f(y) if activation else y, leaves)

    def case(self, dtype, activation, backend="cpu"):
        """(got, plain, truth) for assert_as_accurate."""
        layer = self.to(dtype)
        truth = layer.to(torch.float64).plain(activation)
        return layer.fused(activation, backend), layer.plain(activation), truth


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy(backend, activation, dtype):
    for shape in SHAPES:
        for degrees in ("sorted", "unsorted"):
            layers = (Layer(*shape, degrees, seed) for seed in SEEDS)
            assert_as_accurate(*(layer.case(dtype, activation, backend) for layer in layers))


@pytest.mark.parametrize("backend", TRITON)
def test_triton_at_every_edge(backend):
    shapes = ((1, 1, 1), (63, 65, 64), (65, 16, 15), (64, 130, 17), (300, 33, 65))
    cases = []
    for n, degrees in enumerate(DEGREES):
        layer = Layer(*shapes[n % len(shapes)], degrees, seed=n)
        cases.append(layer.case(torch.float64, [None, *NAMES][n % 8], backend))
    assert_as_accurate(*cases, relative=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_every_tile_edge(dtype):
    kinds = list(DEGREES)
    cases = []
    for n, shape in enumerate(EDGES):
        layer = Layer(*shape, kinds[n % len(kinds)], seed=n)
        cases.append(layer.case(dtype, "silu" if n % 2 else None))
    assert_as_accurate(*cases, relative=True)


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_every_kind_of_degrees(degrees):
    for dtype in DTYPES:
        shapes = (33, 257, 49), (14, 40, 103), (3, 1, 7), (40, 9, 1)
        layers = [Layer(*shape, degrees, seed) for shape in shapes for seed in (0, 1)]
        assert_as_accurate(*(layer.case(dtype, "tanh") for layer in layers), relative=True)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_medium_precision_is_as_accurate_as_bfloat16(precision):
    precision("medium")
    kinds = list(DEGREES)
    cases = []
    for n, shape in enumerate(EDGES):
        layer, activation = Layer(*shape, kinds[n % len(kinds)], seed=n), "gelu" if n % 2 else None
        baseline = layer.to(torch.bfloat16).plain(activation)
        baseline = {name: value.float() for name, value in baseline.items()}
        cases.append((layer.to(torch.float32).fused(activation), baseline, layer.plain(activation)))
    assert_as_accurate(*cases, relative=True)


@pytest.mark.parametrize("medium", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.usefixtures("isa")
def test_same_bits_for_any_number_of_threads(dtype, medium, threads, precision):
    precision("medium" if medium else "highest")
    for shape, degrees in (((300, 530, 101), "sorted"), ((13, 257, 500), "unsorted")):
        layer = Layer(*shape, degrees).to(dtype)
        results = []
        for count, own in ((1, False), (2, False), (2, True)):
            threads(count, own)
            results.append(layer.fused("silu"))
        assert all(bitwise_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_integers_are_exact(backend):
    layer = Layer(33, 129, 70, "unsorted")
    layer.tensors = {name: (4 * value).round() for name, value in layer.tensors.items()}
    layer.upstream = (4 * layer.upstream).round()
    got, _, exact = layer.case(torch.float32, "relu", backend)
    for name, value in got.items():
        assert torch.equal(value.double(), exact[name]), name


@pytest.mark.parametrize("backend", WITH_TRITON)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 1000),
    st.sampled_from([None, *NAMES]),
    st.sampled_from(list(DEGREES)),
)
def test_any_small_layer(backend, features, outputs, seed, activation, degrees):
    layer = Layer(3, features, outputs, degrees, seed)
    got, expected = layer.fused(activation, backend), layer.plain(activation)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_an_infinite_input_stays_within_its_edges(backend):
    layer = Layer(4, 6, 5, "unsorted")
    clean = layer.fused("tanh", backend)
    layer.tensors["x"][2, 3] = float("nan")
    dirty = layer.fused("tanh", backend)
    rows = torch.arange(4) != 2
    assert torch.equal(dirty["y"][rows], clean["y"][rows])


@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, activation):
    layer = Layer(3, 4, 5)
    with fastcsm.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: functional.masked_linear(*values, *layer.degrees, activation=activation),
            tuple(layer.leaves().values()),
        )


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
@pytest.mark.parametrize("backend", WITH_TRITON)
def test_gradient_of_one_input_only(backend, needed):
    layer = Layer(5, 7, 3)
    leaf = layer.tensors[needed].requires_grad_()
    with fastcsm.backend(backend):
        y = functional.masked_linear(*layer.tensors.values(), *layer.degrees, activation="silu")
    (grad,) = torch.autograd.grad(y, leaf, layer.upstream)
    leaf.requires_grad_(False)
    torch.testing.assert_close(grad, layer.plain("silu")[needed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_raise(backend):
    layer = Layer(5, 7, 3)
    leaves = list(layer.leaves().values())
    with fastcsm.backend(backend):
        y = functional.masked_linear(*leaves, *layer.degrees, activation="silu")
        (grad,) = torch.autograd.grad(y, leaves[0], layer.upstream, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(grad.sum() + y.sum(), leaves[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_axes_layouts_and_no_bias(backend):
    layer = Layer(12, 7, 3)
    degrees = layer.degrees
    x, weight, _ = layer.tensors.values()
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
    layer = Layer(5, 7, 3)
    degrees = layer.degrees
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.fastcsm
    x, weight, bias = layer.tensors.values()
    with fastcsm.backend(backend):
        torch.library.opcheck(
            ops.masked_linear.default, (x, weight, bias, *degrees, activation), test_utils=utils
        )
        _, preactivation = ops.masked_linear(x, weight, bias, *degrees, activation)
        for needs in ((True, True, True), (False, True, False)):
            args = (layer.upstream, preactivation, x, weight, *degrees, activation, *needs)
            torch.library.opcheck(ops.masked_linear_backward.default, args, test_utils=utils)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_once(backend):
    def forward(x, weight, bias, *degrees):
        return functional.masked_linear(x, weight, bias, *degrees, activation="silu").sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend="aot_eager")
    with fastcsm.backend(backend):
        for rows in (24, 40):
            layer = Layer(rows, 9, 11)
            leaves = list(layer.leaves().values())
            got = torch.autograd.grad(compiled(*leaves, *layer.degrees), leaves)
            expected = torch.autograd.grad(forward(*leaves, *layer.degrees), leaves)
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
