"""The activations a score head may use: f, f' and f'' by name.

This table is the specification every backend is tested against. All three functions are elementwise, keep
the dtype of their argument, are finite wherever their value is, and f and f' can be differentiated by
autograd. Where a derivative jumps (relu, and f'' of elu, at 0) the value at 0 is the one PyTorch uses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation", "get"]

_GELU_SCALE = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715
_GELU_LIMIT = 30.0


@dataclass(frozen=True)
class Activation:
    """An elementwise function with its first two derivatives.

    Attributes:
        name: the name users write.
        code: the integer compiled backends know it by.
        f, df, d2f: Tensor -> Tensor, the function and its derivatives.
    """

    name: str
    code: int
    f: Callable[[Tensor], Tensor]
    df: Callable[[Tensor], Tensor]
    d2f: Callable[[Tensor], Tensor]


def _softplus(a: Tensor) -> Tensor:
    return F.softplus(a, threshold=40.0)


def _sigmoid_slope(a: Tensor) -> Tensor:
    return torch.sigmoid(a) * torch.sigmoid(-a)


def _tanh_slope(a: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * a)


def _tanh_curvature(a: Tensor) -> Tensor:
    return -2 * torch.tanh(a) * _tanh_slope(a)


def _silu_slope(a: Tensor) -> Tensor:
    return torch.sigmoid(a) * (1 + a * torch.sigmoid(-a))


def _silu_curvature(a: Tensor) -> Tensor:
    return _sigmoid_slope(a) * (2 - a * torch.tanh(a / 2))


def _gelu_inner(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, q(a), q'(a) and q''(a) in gelu(a) = a sigmoid(q(a)), for a clamped to where sigmoid(q) is 0 or 1."""
    c = a.clamp(-_GELU_LIMIT, _GELU_LIMIT)
    q = _GELU_SCALE * c * (1 + _GELU_CUBIC * c * c)
    return c, q, _GELU_SCALE * (1 + 3 * _GELU_CUBIC * c * c), _GELU_SCALE * 6 * _GELU_CUBIC * c


def _gelu(a: Tensor) -> Tensor:
    _, q, _, _ = _gelu_inner(a)
    return a * torch.sigmoid(q)


def _gelu_slope(a: Tensor) -> Tensor:
    c, q, dq, _ = _gelu_inner(a)
    return torch.sigmoid(q) + c * dq * _sigmoid_slope(q)


def _gelu_curvature(a: Tensor) -> Tensor:
    c, q, dq, d2q = _gelu_inner(a)
    slope = _sigmoid_slope(q)
    return slope * (2 * dq + c * d2q) - slope * dq * (c * dq * torch.tanh(q / 2))


def _negative_part(a: Tensor) -> Tensor:
    return torch.where(a < 0, a, 0)


def _elu(a: Tensor) -> Tensor:
    return torch.where(a < 0, torch.expm1(_negative_part(a)), a)


def _elu_slope(a: Tensor) -> Tensor:
    return torch.exp(_negative_part(a))


def _elu_curvature(a: Tensor) -> Tensor:
    return torch.where(a < 0, torch.exp(_negative_part(a)), 0)


def _relu_slope(a: Tensor) -> Tensor:
    return (a > 0).to(a.dtype)


def _sigmoid_curvature(a: Tensor) -> Tensor:
    p, q = torch.sigmoid(a), torch.sigmoid(-a)
    return p * q * (q - p)


_TABLE = (
    Activation("softplus", 0, _softplus, torch.sigmoid, _sigmoid_slope),
    Activation("tanh", 1, torch.tanh, _tanh_slope, _tanh_curvature),
    Activation("silu", 2, F.silu, _silu_slope, _silu_curvature),
    Activation("gelu", 3, _gelu, _gelu_slope, _gelu_curvature),
    Activation("elu", 4, _elu, _elu_slope, _elu_curvature),
    Activation("relu", 5, torch.relu, _relu_slope, torch.zeros_like),
    Activation("sigmoid", 6, torch.sigmoid, _sigmoid_slope, _sigmoid_curvature),
)
ACTIVATIONS: dict[str, Activation] = {entry.name: entry for entry in _TABLE}


def get(name: str) -> Activation:
    """The activation called ``name``; raises ValueError listing the known names otherwise."""
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}") from None
