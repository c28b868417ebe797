"""csm_loss of a case with its gradients, fused and in plain PyTorch."""

from support import plain_loss, split, with_gradients

import fastcsm
from fastcsm import functional


def fused_loss(case, leaves):
    return functional.csm_loss(
        *split(leaves),
        activation=case.activation,
        frequencies=case.frequencies,
        alpha=case.alpha,
        beta=case.beta,
        gamma=case.gamma,
    )


def fused(case, backend, upstream=1.0):
    leaves = case.leaves()
    with fastcsm.backend(backend):
        return with_gradients(fused_loss(case, leaves), leaves, upstream)


def plain(case, upstream=1.0):
    leaves = case.leaves()
    return with_gradients(plain_loss(case, leaves), leaves, upstream)
