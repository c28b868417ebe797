"""What autograd of a scalar loss promises, whose gradients come with it: csm_loss stands for both losses."""

import pytest
import torch
from losses import fused, fused_loss
from support import DTYPES, Case, backend_params

import fastcsm

BACKENDS = backend_params("csm_loss")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_scales_the_gradients(backend, dtype):
    case = Case().to(dtype)
    one, scaled = fused(case, backend), fused(case, backend, upstream=-2.0)
    for name in case.leaves():
        assert torch.equal(scaled[name], -2 * one[name]), name


@pytest.mark.parametrize("upstream", [1.0, 2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_is_right(backend, upstream):
    case = Case()
    expected = fused(case, backend, upstream)
    leaves = case.leaves()
    with fastcsm.backend(backend):
        loss = fused_loss(case, leaves) * upstream
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        for name, leaf in leaves.items():
            torch.testing.assert_close(leaf.grad, times * expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("upstream", [1.0, 2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_changing_a_gradient_does_not_change_the_next(backend, upstream):
    case = Case()
    leaves = case.leaves()
    expected = fused(case, backend, upstream)
    with fastcsm.backend(backend):
        loss = fused_loss(case, leaves) * upstream
    for _ in range(3):
        for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)):
            torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=0)
            grad.zero_()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_after_the_inputs_changed_raises(backend):
    leaves = Case().leaves()
    with fastcsm.backend(backend):
        loss = fused_loss(Case(), leaves)
    loss.backward(retain_graph=True)
    with torch.no_grad():
        leaves["weights[0]"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_without_retain_graph_raises(backend):
    leaves = Case().leaves()
    with fastcsm.backend(backend):
        loss = fused_loss(Case(), leaves)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_later_graph_accumulate(backend):
    case = Case()
    expected = fused(case, backend)
    leaves = case.leaves()
    with fastcsm.backend(backend):
        for _ in range(2):
            fused_loss(case, leaves).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 2 * expected[name], rtol=1e-12, atol=0)
