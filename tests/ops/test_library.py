"""Gradients of the ops can be differentiated no further, and say so."""

import functools

import pytest
import torch
from densities import Restoring
from losses import fused_loss
from support import Case, backend_params, split
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fastcsm
from fastcsm import functional

BACKENDS = backend_params("csm_loss")


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_scores_raise(backend):
    case = Case()
    leaves = case.leaves()
    with fastcsm.backend(backend):
        score, _ = functional.score_head(*split(leaves), frequencies=case.frequencies)
        (grad,) = torch.autograd.grad(score.sum(), leaves["x"], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad((grad**2).sum() + score.sum(), leaves["weights[0]"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_a_loss_raise(backend):
    case = Case()
    leaves = case.leaves()
    with fastcsm.backend(backend):
        loss = fused_loss(case, leaves)
        (grad,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
        total = loss + (grad**2).sum()
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(total, leaves["weights[0]"], retain_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            total.backward()


def calls():
    """(op, input) of every op that has a gradient."""
    case = Restoring().to(torch.float64)
    head = case.weights, case.biases
    options = {"activation": case.activation, "frequencies": case.frequencies}
    degrees = torch.arange(case.context.shape[1]), torch.arange(12) % 6
    layer = torch.randn(12, case.context.shape[1], dtype=torch.float64), None, *degrees
    x = torch.stack([case.x, case.x], -1)
    return {
        "score_head": lambda c: functional.score_head(c, case.x, *head, **options)[0],
        "csm_loss": lambda c: functional.csm_loss(c, case.x, *head, **options),
        "linear_csm_loss": lambda c: functional.linear_csm_loss(c, *layer, x, *head, **options),
        "masked_linear": lambda c: functional.masked_linear(c, *layer),
        "conditional_density": lambda c: (
            functional.conditional_density(c, case.x, *head, low=-3.0, high=3.0, **options).log_density
        ),
    }, case.context


OPS = list(calls()[0])
ONE_AT_A_TIME = ("score_head", "conditional_density")


@pytest.mark.parametrize("op", OPS)
def test_many_gradients_at_once_are_right_or_refused(op):
    functions, context = calls()
    context.requires_grad_()
    result = functions[op](context)
    upstream = torch.randn(3, *result.shape, dtype=result.dtype)
    if op in ONE_AT_A_TIME:
        with pytest.raises(RuntimeError, match=r"one gradient at a time.*autograd\.grad once for each"):
            torch.autograd.grad(result, context, upstream, is_grads_batched=True)
        return
    one_by_one = [torch.autograd.grad(result, context, u, retain_graph=True)[0] for u in upstream]
    for _ in range(2):
        (found,) = torch.autograd.grad(result, context, upstream, is_grads_batched=True, retain_graph=True)
        torch.testing.assert_close(found, torch.stack(one_by_one))


@pytest.mark.parametrize("op", OPS)
def test_a_vectorized_jacobian_is_right_or_refused(op):
    functions, context = calls()
    function = functions[op]
    if op in ONE_AT_A_TIME:
        with pytest.raises(RuntimeError, match="one gradient at a time"):
            torch.autograd.functional.jacobian(function, context, vectorize=True)
        return
    plain = torch.autograd.functional.jacobian(function, context)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, context, vectorize=True), plain)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_and_transforms_are_refused(op):
    """A tangent would be dropped, and an op's result taken for a constant."""
    functions, context = calls()
    function = functions[op]
    for leaf in (context.clone(), context.clone().requires_grad_()):
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            function(forward_ad.make_dual(leaf, torch.ones_like(leaf)))
    with forward_ad.dual_level():
        function(context)
    with pytest.raises(RuntimeError, match=r"do not run inside torch\.func transforms"):
        torch.func.hessian(lambda c: function(c).sum())(context)


@pytest.mark.parametrize("op", OPS)
def test_hooks_on_saved_tensors_and_checkpoints_change_no_gradient(op):
    functions, context = calls()
    function = functions[op]

    def gradient(call):
        leaf = context.clone().requires_grad_()
        call(leaf).sum().backward(retain_graph=True)
        return leaf.grad

    def hooked(leaf):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
            return function(leaf)

    expected = gradient(function)
    assert torch.equal(gradient(hooked), expected)
    for reentrant in (False, True):
        again = functools.partial(checkpoint, function, use_reentrant=reentrant)
        assert torch.equal(gradient(again), expected)
