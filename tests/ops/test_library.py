"""Gradients of the ops can be differentiated no further, and say so."""

import pytest
import torch
from losses import fused_loss
from support import Case, backend_params, split

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
