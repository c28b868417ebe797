"""probability_flow: schema and fake; not differentiable."""

from typing import Any

import torch
from torch import Tensor

from .library import define


def _fake(context, x, *args):
    wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    return tuple(torch.empty_like(x, dtype=wide) for _ in range(3))


_op = define(
    "probability_flow(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, float sigma_from, float sigma_to, float tolerance, bool change)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
)


def probability_flow(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastcsm.reference.probability_flow.probability_flow`; the results carry no gradient."""
    with torch.no_grad():
        return _op(*args)
