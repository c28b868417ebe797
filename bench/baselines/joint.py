"""Score matching of a whole x at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def exact_score_matching(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean over samples x (B, D) of |s|^2 / 2 + tr(ds/dx), with one backward pass for each variable.

    Fair because samples are independent, so that one pass gives the diagonal's entry of all of them.
    """
    x = x.detach().requires_grad_()
    s = score(x)
    total = s.square().sum() / 2
    for d in range(x.shape[1]):
        (row,) = torch.autograd.grad(s[:, d].sum(), x, create_graph=True)
        total = total + row[:, d].sum()
    return total / len(x)


def sliced_score_matching(score: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The mean over samples of |s|^2 / 2 + v (ds/dx) v for a projection v (B, D).

    Fair because one backward pass gives v (ds/dx) of all samples.
    """
    x = x.detach().requires_grad_()
    s = score(x)
    (slope,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
    return (s.square().sum() / 2 + (slope * v).sum()) / len(x)
