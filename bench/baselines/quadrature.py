"""The density of rows by the same panels for all of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .head import ACTIVATIONS, Rows

LOW, HIGH = -1.2, 1.2
#: The same of a preconditioned head's v.
OWN = -8.0, 8.0


def eager_quadrature(
    rows: Rows, *, sigma: float, panels: int, squash: float | None = None, part: int = 512
) -> Tensor:
    """log q(x) (N,) on [-1.2, 1.2] by panels of 16 Gauss-Legendre nodes, the same for all rows.

    The head is conditional, without frequencies: its score is the output over ``sigma``, whose logarithm is
    the last context feature. With ``squash`` it is preconditioned, contexts have -ln(tau) last, x is v, and
    the interval is :data:`OWN`. There is no error estimate.

    Fair because the context's product is taken once a row, the integrals of s and exp(L) are two small
    products, and ``part`` rows come at a time: by default as many as fit the cache of a processor many times
    over, not all at once.
    """
    nodes, rule = np.polynomial.legendre.leggauss(16)
    upto = np.linalg.inv(np.polynomial.legendre.legvander(nodes, 15))  # (degree, node)
    tables = [torch.as_tensor(table).to(rows.x) for table in (nodes, rule, upto)]
    parts = zip(rows.context.split(part), rows.x.split(part), strict=True)
    return torch.cat([_part(rows._replace(context=c, x=v), sigma, panels, squash, *tables) for c, v in parts])


def _integrals(t: Tensor, upto: Tensor) -> Tensor:
    """Integrals from -1 to t (...) of polynomials that are 1 at one node, 0 at the others; (..., 16)."""
    p = [torch.ones_like(t), t]
    for k in range(1, 16):
        p.append(((2 * k + 1) * t * p[k] - k * p[k - 1]) / (k + 1))
    parts = [t + 1, *((p[k + 1] - p[k - 1]) / (2 * k + 1) for k in range(1, 16))]
    return torch.stack(parts, -1) @ upto


def _part(
    rows: Rows, sigma: float, panels: int, squash: float | None, nodes: Tensor, rule: Tensor, upto: Tensor
) -> Tensor:
    context, x, weights, biases, _, activation = rows
    low, high = (LOW, HIGH) if squash is None else OWN
    width = (high - low) / panels
    t = low + width * (torch.arange(panels, device=x.device)[:, None] + (nodes + 1) / 2)
    u = t if squash is None else squash * torch.asinh(t / squash)
    base = F.linear(context, weights[0][:, : context.shape[1]], biases[0])
    h = (base + math.log(sigma) * weights[0][:, -2])[:, None] + u.flatten()[:, None] * weights[0][:, -1]
    f = ACTIVATIONS[activation]
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        h = F.linear(f(h), weight, bias)
    s = F.linear(f(h), weights[-1], biases[-1])[..., 0].view(len(x), panels, 16) / sigma
    if squash is not None:
        s = torch.exp(-context[:, -1])[:, None, None] * s - t
    total = (s @ rule) * width / 2
    start = total.cumsum(1) - total
    log_q = start[..., None] + width / 2 * s @ _integrals(nodes, upto).T
    log_z = (log_q + (rule * width / 2).log()).flatten(1).logsumexp(1)
    place = ((x - low) / width).floor().clamp(0, panels - 1).long()
    inside = _integrals(2 * ((x - low) / width - place) - 1, upto)
    own = s[torch.arange(len(x), device=x.device), place]
    return start.gather(1, place[:, None])[:, 0] + width / 2 * (own * inside).sum(1) - log_z
