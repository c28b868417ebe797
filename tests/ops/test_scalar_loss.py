"""What autograd of a scalar loss promises, whose gradients come with it: csm_loss stands for both losses."""

import pytest
import torch
from losses import fused, fused_loss, plain
from support import DTYPES, Case, backend_params
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

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


def test_a_scaled_loss_scales_gradients_before_float16_rounds_them():
    case, scale = Case(rows=64), 2.0**20  # as torch.amp.GradScaler does
    case.alpha, case.beta, case.gamma = (1e-7 * value for value in (case.alpha, case.beta, case.gamma))
    truth, got = plain(case), fused(case.to(torch.float16), "reference", upstream=scale)
    for name in case.leaves():
        assert got[name].dtype is torch.float16
        assert (got[name].double() / scale - truth[name]).norm() < 0.01 * truth[name].norm(), name


def test_a_traced_backward_keeps_the_upstream():
    case = Case().to(torch.float32)
    leaves = case.leaves()

    def gradients(scale):
        return torch.autograd.grad(scale * fused_loss(case, leaves), list(leaves.values()))

    traced = make_fx(gradients)(torch.tensor(1.0))
    for got, expected in zip(traced(torch.tensor(-3.0)), gradients(torch.tensor(-3.0)), strict=True):
        torch.testing.assert_close(got, expected)


def test_backward_runs_on_fake_tensors():
    with FakeTensorMode():
        leaves = Case().to(torch.float32).leaves()
        fused_loss(Case().to(torch.float32), leaves).backward()
    assert {name: leaf.grad.shape for name, leaf in leaves.items()} == {
        name: leaf.shape for name, leaf in leaves.items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trace_has_gradients(backend):
    case = Case()
    expected, x = fused(case, backend), case.x.clone().requires_grad_()
    others = {name: value.detach() for name, value in case.leaves().items()}
    with fastcsm.backend(backend):
        traced = torch.jit.trace(lambda x: fused_loss(case, {**others, "x": x}), x, check_trace=False)
        traced(x).backward()
    torch.testing.assert_close(x.grad, expected["x"])
