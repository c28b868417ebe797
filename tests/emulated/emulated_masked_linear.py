"""masked_linear in CUDA, as emulated_kernels.py; test_cuda_kernels.py runs them."""

import emulated_kernels
import pytest
import torch
from comparisons import plain_precision
from support import SEEDS, assert_as_accurate, bitwise_equal
from test_linear_csm_loss import LinearCase
from test_masked_linear import Layer

from fastcsm import backends
from fastcsm.ops import linear_csm_loss

precision = emulated_kernels.precision  # the fixture
# Rows, inputs, outputs, the kind of degrees and the activation, about the edges of the three kinds of tiles
# and of blocks of the sum; odd sizes, whose rows are copied by 2 or 4 bytes. The emulation has three
# multiprocessors, for which several tiles of 128 rows may be tall; long sums have parts, and batches slices.
LAYERS = [
    (3, 1100, 20, "sorted", "sigmoid"),
    (40, 1100, 30, "narrow", "gelu"),
    (130, 40, 600, "unsorted", None),
    (1030, 20, 9, "ties", "silu"),
    (5, 7, 3, "unsorted", "elu"),
    (1, 1, 1, "one variable", None),
    (17, 130, 66, "narrow", "silu"),
    (64, 64, 64, "ties", None),
    (65, 36, 129, "sorted", "softplus"),
    (16, 257, 33, "inputs unsorted", "elu"),
    (140, 128, 100, "contexts", None),
    (0, 9, 4, "sorted", "tanh"),
]


@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "-".join(map(str, shape)))
def test_masked_linear(shape, precision):
    *sizes, degrees, activation = shape
    layer = Layer(*sizes, degrees)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    low = layer.to(dtype)
    with plain_precision(precision):
        plain = low.plain(activation)
    truth = low.to(torch.float64).plain(activation)
    assert_as_accurate((low.fused(activation, "emulation"), plain, truth))


def into(layer, grad_weight, grad_bias, activation="silu", need_x=True):
    """grad_x of the op that writes the other gradients where it is told."""
    kernels = backends.registry.known["emulation"]
    given = layer.tensors["x"], layer.tensors["weight"], *layer.degrees, activation
    x, weight, bias = layer.tensors.values()
    _, a = kernels.implementation("masked_linear")(x, weight, bias, *layer.degrees, activation)
    run = kernels.implementation("masked_linear_backward_into")
    return run(layer.upstream, a, *given, need_x, grad_weight, grad_bias)


def shifted(tensor, by):
    """The same numbers ``by`` elements into a storage, so that they are less aligned."""
    return torch.cat([tensor.new_full((by,), torch.nan), tensor.flatten()])[by:].view(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_tensors_begin_changes_nothing(dtype):
    layer = Layer(40, 72, 80, "sorted").to(dtype)
    expected = layer.fused("silu", "emulation")
    again = layer.fused("silu", "emulation")
    assert bitwise_equal(again, expected)
    for by in (1, 2):
        moved = layer.to(dtype)
        moved.tensors = {name: shifted(value, by) for name, value in layer.tensors.items()}
        moved.upstream = shifted(layer.upstream, by)
        weight = shifted(torch.full((80, 72), torch.nan, dtype=dtype), by)
        bias = shifted(torch.full((80,), torch.nan, dtype=dtype), by)
        grad_x = into(moved, weight, bias)
        got = {"x": grad_x, "weight": weight, "bias": bias}
        assert bitwise_equal(got, {name: expected[name] for name in got})


def test_gradients_that_are_not_wanted():
    layer = Layer(9, 20, 12, "unsorted").to(torch.float32)
    expected = layer.fused("silu", "emulation")
    empty = torch.empty(0)
    assert torch.equal(into(layer, empty, empty), expected["x"])
    weight, bias = torch.empty(12, 20), torch.empty(12)
    assert into(layer, weight, empty, need_x=False).numel() == 0
    assert into(layer, empty, bias, need_x=False).numel() == 0
    assert bitwise_equal({"weight": weight, "bias": bias}, {k: expected[k] for k in ("weight", "bias")})


@pytest.mark.parametrize("rows", [3, 70])
def test_what_no_edge_reads_is_not_read(rows):
    """NaN in inputs that no output reads, and in upstream gradients of outputs that read nothing."""
    layer = Layer(rows, 40, 30, "unsorted").to(torch.float32)
    into_degrees, out_degrees = layer.degrees
    into_degrees[::7] = 100
    out_degrees[::5] = -1
    layer.outside = into_degrees > out_degrees[:, None]
    clean = layer.fused(None, "emulation")
    layer.tensors["x"][:, ::7] = torch.nan
    layer.upstream[:, ::5] = torch.nan
    dirty = layer.fused(None, "emulation")
    assert torch.equal(dirty["y"], clean["y"])
    assert torch.equal(dirty["x"], clean["x"])
    assert torch.equal(dirty["weight"], clean["weight"])


@pytest.mark.parametrize("sizes", [(4, 0, 3), (4, 3, 0), (0, 0, 0)])
def test_no_inputs_or_outputs(sizes):
    layer = Layer(*sizes).to(torch.float32)
    expected = layer.plain("tanh")
    got = layer.fused("tanh", "emulation")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_linear_csm_loss(monkeypatch, precision):
    """The composition runs whole on the backend, in blocks of dimensions too."""
    monkeypatch.setattr(linear_csm_loss, "block_size", lambda *_: 3)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    cases = []
    for seed in SEEDS if precision == "bfloat16" else range(2):
        case = LinearCase(seed=seed, shuffled=True).to(dtype)
        with plain_precision(precision):
            plain = case.plain()
        cases.append((case.fused("emulation"), plain, case.to(torch.float64).plain()))
    assert_as_accurate(*cases)
