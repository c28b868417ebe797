"""A MADE's contexts in drawing order by PyTorch, each hidden unit once: for draws made of smaller ops."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import activations


def contexts_in_order(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    order: Tensor,
    activation: str,
    residual: bool,
    first: int,
    last: int,
) -> Iterator[tuple[int, Tensor]]:
    """As :func:`fastcsm.reference.langevin.contexts_in_order` of one network, at the cost of one pass.

    Units are sorted by degree: those of degree k follow each other, need the first k variables and units of
    the layer below up to degree k, and are computed when these are known.
    """
    f, variables = activations.get(activation).f, order.tolist()
    counts = torch.arange(len(variables) + 1, device=order.device)
    due = [torch.searchsorted(degree, counts, right=True).tolist() for degree in degrees]
    features = weights[-1].shape[0] // len(variables)
    inputs = weights[0][:, order]
    known = x[:, order[:first]]
    units = [x.new_zeros(len(x), len(degree)) for degree in degrees]
    stream = torch.zeros_like(units[0])
    done = [0] * len(units)
    for k in range(first, last):
        below = known
        for l, unit in enumerate(units):
            own, weight = slice(done[l], due[l][k]), inputs if l == 0 else weights[l]
            sums = torch.addmm(biases[l][own], below, weight[own, : below.shape[1]].T)
            if residual and l % 2 == 0:
                stream[:, own] += sums
                sums = stream[:, own]
            unit[:, own] = f(sums)
            done[l] = due[l][k]
            below = unit[:, : done[l]]
        d = variables[k]
        rows = slice(d * features, (d + 1) * features)
        yield d, torch.addmm(biases[-1][rows], below, weights[-1][rows, : below.shape[1]].T)
        known = torch.cat([known, x[:, d : d + 1]], 1)
