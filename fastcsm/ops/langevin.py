"""langevin: schema and fake; not differentiable."""

from typing import Any

import torch
from torch import Tensor

from .library import define


def _fake(context, x, *args):
    return torch.empty_like(x)


_op = define(
    "langevin(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, float[] step_sizes, float[] score_scales, float[] stage_features,"
    " int steps, int seed, Tensor samples, Tensor dimensions, int first_step) -> Tensor",
    _fake,
)


def langevin(*args: Any) -> Tensor:
    """See :func:`fastcsm.reference.langevin.langevin`; the result carries no gradient."""
    with torch.no_grad():
        return _op(*args)
