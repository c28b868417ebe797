"""The argument checks of functions of rows: layouts that are taken, and what is refused in which words."""

import numpy as np
import pytest
import torch
from comparisons import check_shape
from support import Case, backend_params

import fastcsm
from fastcsm import functional
from fastcsm.functional.arguments import signed_seed

BACKENDS = backend_params("score_head")


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend):
    case = Case(rows=1).to(torch.float32)
    head = {"weights": case.weights, "biases": case.biases, "frequencies": case.frequencies}
    with fastcsm.backend(backend):
        one = functional.score_head(case.context, case.x, **head)
        many = functional.score_head(case.context.expand(2, 3, 5, 6), case.x.expand(2, 3, 5), **head)
    for a, b in zip(one, many, strict=True):
        assert b.shape == (2, 3, 5)
        torch.testing.assert_close(b, a.expand(2, 3, 5))


@pytest.mark.parametrize("backend", backend_params("csm_loss", "cpu", "triton"))
@pytest.mark.parametrize("shape", [(), (4, 1), (1, 4), (2, 3, 2), (3, 0)])
def test_rows_of_any_leading_shape_are_rows(backend, shape):
    check_shape(backend, shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_biases_are_zeros(backend):
    case = Case()
    zeros = [torch.zeros_like(b) for b in case.biases]
    with fastcsm.backend(backend):
        a = functional.score_head(case.context, case.x, case.weights, zeros, frequencies=case.frequencies)
        b = functional.score_head(
            case.context, case.x, case.weights, [None] * 3, frequencies=case.frequencies
        )
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


ARGUMENTS = {
    "context": torch.zeros(4, 2),
    "x": torch.zeros(4),
    "weights": [torch.zeros(5, 3), torch.zeros(1, 5)],
    "biases": [torch.zeros(5), None],
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"context": None}, TypeError, "context must be a tensor, got NoneType"),
        ({"context": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "context must have a floating dtype"),
        ({"x": torch.zeros(5)}, ValueError, r"x must have the shape of context .* \(4,\), got \(5,\)"),
        ({"x": torch.zeros(4, dtype=torch.float64)}, TypeError, "x must be torch.float32 on cpu"),
        ({"x": 1.0}, TypeError, "x must be a tensor, got float"),
        ({"weights": [torch.zeros(1, 3)], "biases": [None]}, ValueError, "weights must hold at least 2"),
        ({"weights": [torch.zeros(5, 4), torch.zeros(1, 5)]}, ValueError, r"weights\[0\] .*\(5, 3\), got"),
        ({"weights": [torch.zeros(5, 3), torch.zeros(2, 5)]}, ValueError, r"weights\[1\] .*\(1, 5\), got"),
        ({"weights": [torch.zeros(5), torch.zeros(1, 5)]}, ValueError, r"weights\[0\] must have 2 axes"),
        ({"biases": [None]}, ValueError, "biases must hold one entry for each of the 2 weights, got 1"),
        ({"biases": [torch.zeros(4), None]}, ValueError, r"biases\[0\] must have shape \(5,\), got \(4,\)"),
        ({"biases": [torch.zeros(5).bfloat16(), None]}, TypeError, r"biases\[0\] must be torch.float32"),
        ({"frequencies": torch.zeros(2, 2)}, ValueError, "frequencies must have 1 axes"),
        ({"frequencies": torch.zeros(2)}, ValueError, r"weights\[0\] must have shape \(5, 7\)"),
        ({"frequencies": torch.zeros(2, requires_grad=True)}, ValueError, "frequencies must not require a g"),
        ({"activation": "swish"}, ValueError, "activation must be one of softplus, .*, got 'swish'"),
        ({"weights": [torch.zeros(5, 3, device="meta"), torch.zeros(1, 5)]}, TypeError, "on cpu .* on meta"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message) as caught:
        functional.score_head(**(ARGUMENTS | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": torch.ones(3)}, ValueError, r"alpha must broadcast to .* \(4,\), got \(3,\)"),
        ({"beta": torch.ones(2, 4)}, ValueError, "beta must broadcast"),
        ({"gamma": torch.ones(4, device="meta")}, TypeError, "gamma must be on cpu like x, got meta"),
        ({"x": torch.zeros(3)}, ValueError, "x must have the shape of context"),
    ],
)
def test_bad_coefficients(change, error, message):
    weights, biases = [torch.zeros(5, 3), torch.zeros(1, 5)], [None, None]
    arguments = {"context": torch.zeros(4, 2), "x": torch.zeros(4), "weights": weights, "biases": biases}
    with pytest.raises(error, match=message):
        functional.csm_loss(**(arguments | change))


@pytest.mark.parametrize("seed", [2**63 + 5, np.uint64(2**63 + 5), np.int32(7), torch.tensor(7)])
def test_a_seed_keeps_its_bits(seed):
    assert signed_seed(seed) % 2**64 == int(seed)
