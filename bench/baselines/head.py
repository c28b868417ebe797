"""A head on rows: its score, the derivative by each way that PyTorch has, and the CSM loss around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Numbers = float | Tensor
Pair = tuple[Tensor, Tensor]


class Rows(NamedTuple):
    """A head and the rows it is applied to.

    Attributes:
        context, x: (N, C) and (N,).
        weights, biases: as in nn.Linear, layer by layer; the last layer has one output.
        frequencies: (E,) of sin(w x) and cos(w x), which follow x among the inputs.
        activation: a name in :data:`ACTIVATIONS`.
    """

    context: Tensor
    x: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    frequencies: Tensor
    activation: str

    def to(self, dtype: torch.dtype, gradients: bool = False) -> Rows:
        """Copies without history; with ``gradients``, context, weights and biases require them."""

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(gradients)

        weights, biases = ([copied(t) for t in tensors] for tensors in (self.weights, self.biases))
        x, frequencies = self.x.to(dtype), self.frequencies.to(dtype)
        return Rows(copied(self.context), x, weights, biases, frequencies, self.activation)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": lambda a: F.gelu(a, approximate="tanh"),
    "elu": F.elu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


def _silu(a: Tensor) -> Pair:
    p = torch.sigmoid(a)
    z = a * p
    return z, p + z * (1 - p)


def _gelu(a: Tensor) -> Pair:
    square = a * a
    t = torch.tanh(0.7978845608028654 * a * (1 + 0.044715 * square))
    slope = 0.5 * (1 + t) + 0.3989422804014327 * a * (1 - t * t) * (1 + 0.134145 * square)
    return 0.5 * a * (1 + t), slope


def _tanh(a: Tensor) -> Pair:
    z = torch.tanh(a)
    return z, 1 - z * z


def _elu(a: Tensor) -> Pair:
    z = F.elu(a)
    return z, 1 + z.clamp(max=0)


def _sigmoid(a: Tensor) -> Pair:
    z = torch.sigmoid(a)
    return z, z * (1 - z)


_WITH_SLOPE: dict[str, Callable[[Tensor], Pair]] = {
    "softplus": lambda a: (F.softplus(a), torch.sigmoid(a)),
    "tanh": _tanh,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "relu": lambda a: (F.relu(a), (a > 0).to(a.dtype)),
    "sigmoid": _sigmoid,
}


def layers(h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    """Linear layers with activations between them, on h (N, ...); the one output (N,)."""
    f = ACTIVATIONS[activation]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = f(F.linear(h, weight, bias))
    return F.linear(h, weights[-1], biases[-1]).squeeze(1)


def score(rows: Rows) -> Tensor:
    """Score (N,) of an nn.Sequential of Linear and activation on [c, x, sin(w x), cos(w x)]."""
    columns = [rows.context, rows.x.unsqueeze(1)]
    if rows.frequencies.numel():
        angles = rows.x.unsqueeze(1) * rows.frequencies
        columns += [torch.sin(angles), torch.cos(angles)]
    return layers(torch.cat(columns, 1), rows.weights, rows.biases, rows.activation)


def scores_double_backward(rows: Rows, graph: bool = True) -> Pair:
    """The usual way: s' by autograd.grad(create_graph=True), then backward through both passes; each (N,).

    Fair because one gradient of the summed score gives every row's derivative (rows are independent), only x
    is differentiated in the first pass, and the head is nothing but library calls. Without ``graph`` no graph
    of the derivative is kept, and there is no second pass.
    """
    x = rows.x.detach().requires_grad_()
    s = score(rows._replace(x=x))
    (ds,) = torch.autograd.grad(s.sum(), x, create_graph=graph)
    return s, ds


def scores_tangent(rows: Rows) -> Pair:
    """The tangent written by hand beside the primal, so that one ordinary backward pass is enough.

    Fair because it shares the slope's transcendental with the activation, and starts from the column of x in
    W_1 instead of multiplying a tangent of zeros for the context.
    """
    context, x, weights, biases, frequencies, activation = rows
    f_and_slope = _WITH_SLOPE[activation]
    features, first = context.shape[1], weights[0]
    t = first[:, features].expand(x.shape[0], -1)
    if frequencies.numel():
        angles = x.unsqueeze(1) * frequencies
        sine, cosine = torch.sin(angles), torch.cos(angles)
        h = torch.cat([context, x.unsqueeze(1), sine, cosine], 1)
        dh = torch.cat([frequencies * cosine, -frequencies * sine], 1)
        t = F.linear(dh, first[:, features + 1 :], first[:, features])
    else:
        h = torch.cat([context, x.unsqueeze(1)], 1)
    z, slope = f_and_slope(F.linear(h, first, biases[0]))
    u = slope * t
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        z, slope = f_and_slope(F.linear(z, weight, bias))
        u = slope * F.linear(u, weight)
    s = F.linear(z, weights[-1], biases[-1]).squeeze(1)
    return s, F.linear(u, weights[-1]).squeeze(1)


def scores_jvp(rows: Rows) -> Pair:
    """Forward-mode: (s, s') from one torch.func.jvp with respect to x, then an ordinary backward pass.

    Fair because it is the library's own way to a directional derivative and needs a single forward pass.
    """
    x = rows.x
    outputs = torch.func.jvp(lambda v: score(rows._replace(x=v)), (x,), (torch.ones_like(x),))
    return outputs[0], outputs[1]


def _csm(scores: Callable[[Rows], Pair]) -> Callable[..., Tensor]:
    """The CSM loss by one way to (s, s'): the sum over rows of alpha s^2 / 2 + beta s' + gamma s, a scalar.

    alpha, beta and gamma are floats or (N,).
    """

    def loss(rows: Rows, alpha: Numbers, beta: Numbers, gamma: Numbers | None = None) -> Tensor:
        s, ds = scores(rows)
        terms = alpha * s.square() / 2 + beta * ds
        return (terms if gamma is None else terms + gamma * s).sum()

    return loss


csm_double_backward = _csm(scores_double_backward)
csm_jvp = _csm(scores_jvp)
csm_tangent = _csm(scores_tangent)


def csm_denoising(rows: Rows, alpha: Numbers, beta: float, gamma: Numbers) -> Tensor:
    """The loss for beta = 0, which needs no derivative."""
    s = score(rows)
    return (alpha * s.square() / 2 + gamma * s).sum()
