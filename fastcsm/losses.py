"""Training losses on a score head: composite score matching and conditional denoising."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import functional
from .nn.score_head import ScoreHead

__all__ = ["csm_loss", "denoising_loss", "score_and_derivative"]

Head = nn.Module | Callable[[Tensor], Tensor]

_warned: set[str] = set()


class LinearContext(NamedTuple):
    """Contexts (..., D, C + X) that a masked linear layer gives, not computed yet; the losses take them.

    The context of dimension d is [rows d C ... (d + 1) C of (W * M) h + b, extra_d]. A loss that runs fused
    computes it block of dimensions by block of dimensions.
    """

    #: (hidden, weight, bias, in_degrees, out_degrees) as for :func:`fastcsm.functional.masked_linear`.
    layer: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]
    extra: Tensor | None = None

    def whole(self, dimensions: int) -> Tensor:
        """The contexts as one tensor, D being given."""
        context = functional.masked_linear(*self.layer).unflatten(-1, (dimensions, -1))
        return context if self.extra is None else torch.cat([context, self.extra], -1)


class HeadParameters(NamedTuple):
    """A head as :mod:`fastcsm.functional` takes it."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    activation: str
    frequencies: Tensor | None


def head_parameters(head: Head) -> HeadParameters | str:
    """The raw tensors of a head that can run fused, or the reason why it cannot, as a string.

    Fused are :class:`fastcsm.nn.ScoreHead`, and an nn.Sequential of Linear and activation modules (Softplus,
    Tanh, SiLU, GELU(approximate="tanh"), ELU, ReLU, Sigmoid, with their default parameters; one kind in a
    head) that ends in a Linear with one output. Identity, and Dropout that does nothing, are skipped.
    """
    if isinstance(head, ScoreHead):
        return HeadParameters(head.weights, head.biases, head.activation, head.frequencies)
    if type(head) is not nn.Sequential:
        return f"{type(head).__name__} is neither a ScoreHead nor an nn.Sequential"
    linears: list[nn.Linear] = []
    kinds: list[str] = []
    for index, module in enumerate(head):
        if module._forward_hooks or module._forward_pre_hooks:
            return f"module {index} ({type(module).__name__}) has forward hooks"
        if _does_nothing(module):
            continue
        if type(module) is nn.Linear:
            if len(kinds) != len(linears):
                return f"module {index} (Linear) follows a Linear with no activation between them"
            linears.append(module)
            continue
        kind = _activation_name(module)
        if kind is None:
            return f"module {index} ({module}) is not a supported activation"
        if len(linears) != len(kinds) + 1:
            return f"module {index} ({type(module).__name__}) does not follow a Linear"
        kinds.append(kind)
    if len(linears) < 2 or len(kinds) != len(linears) - 1 or linears[-1].out_features != 1:
        return "it does not have a hidden layer and end in a Linear with one output"
    if len(set(kinds)) > 1:
        return f"it mixes the activations {', '.join(sorted(set(kinds)))}"
    return HeadParameters([m.weight for m in linears], [m.bias for m in linears], kinds[0], None)


def _does_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (
        type(module) is nn.Dropout and (module.p == 0 or not module.training)
    )


def _activation_name(module: nn.Module) -> str | None:
    kind = type(module)
    if kind is nn.Softplus:
        return "softplus" if module.beta == 1 and module.threshold == 20 else None
    if kind is nn.GELU:
        return "gelu" if module.approximate == "tanh" else None
    if kind is nn.ELU:
        return "elu" if module.alpha == 1 else None
    plain = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu", nn.Sigmoid: "sigmoid"}
    return plain.get(kind)


def score_and_derivative(head: Head, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Score s(c, x) = head([c, x]) and its derivative with respect to x, in one pass.

    Args:
        head: a :class:`fastcsm.nn.ScoreHead`; an nn.Sequential that :func:`head_parameters` accepts (fused);
            or any callable that maps (..., C + 1), x last, to (..., 1) or (...), each row by itself. The
            latter runs by forward-mode autodiff, and one warning says why.
        context: (..., C).
        x: (...), of the dtype and device of the context and the head.

    Returns:
        s and s', each of the shape of x; differentiable.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    found = head_parameters(head)
    if isinstance(found, HeadParameters):
        return functional.score_head(
            context,
            x,
            found.weights,
            found.biases,
            activation=found.activation,
            frequencies=found.frequencies,
        )
    _warn_once(f"the score head runs by forward-mode autodiff, not fused: {found}")
    return _by_forward_mode(head, context, x)


def _warn_once(message: str) -> None:
    if torch.compiler.is_compiling() or message in _warned:
        return
    _warned.add(message)
    warnings.warn(message, stacklevel=4)


def score(head: Head, context: Tensor, x: Tensor) -> Tensor:
    """The score alone: :func:`score_and_derivative` without the derivative, which any head has."""
    found = head_parameters(head)
    if isinstance(found, HeadParameters):
        options: dict[str, Any] = {"activation": found.activation, "frequencies": found.frequencies}
        return functional.score(context, x, found.weights, found.biases, **options)
    return _applied(head, context, x)


def _applied(head: Head, context: Tensor, x: Tensor) -> Tensor:
    """head([c, x]) of a head of any kind, in the shape of x."""
    output = head(torch.cat([context, x.unsqueeze(-1)], -1))
    if output.shape not in (x.shape, (*x.shape, 1)):
        raise ValueError(
            f"head must return shape {(*x.shape, 1)} or {tuple(x.shape)}, got {tuple(output.shape)}"
        )
    return output.reshape(x.shape)


def _by_forward_mode(head: Head, context: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if context.shape[:-1] != x.shape or context.dim() == 0:
        raise ValueError(
            f"x must have the shape of context without its last axis, {tuple(context.shape[:-1])},"
            f" got {tuple(x.shape)}"
        )
    tangent = (torch.ones_like(x),)
    result = torch.func.jvp(lambda x: _applied(head, context, x), (x,), tangent)
    return result[0], result[1]


def csm_loss(
    head: Head,
    context: Tensor | LinearContext,
    x: Tensor,
    *,
    row_weight: float | Tensor | None = None,
    score_scale: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Composite score matching loss of a score head (Eq. 5): sum over dimensions of s^2 / 2 + s'.

    Args:
        head: as for :func:`score_and_derivative`.
        context: (..., D, C), the context of each dimension, or a :class:`LinearContext`.
        x: (..., D), the values at which the score is matched. A one-dimensional x is one sample.
        row_weight: weight of each row, a number or a tensor that broadcasts to x; 1 by default.
        score_scale: the score is score_scale times the head's output; a number or a tensor that broadcasts
            to x; 1 by default.
        reduction: "mean" over samples of the sum over dimensions (0 for an empty batch), "sum", or "none"
            for one value per sample, which recomputes in the backward pass.

    Returns:
        A scalar, or a tensor of shape x.shape[:-1] for "none"; differentiable once.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    weight, scale = _coefficients(row_weight, score_scale, x, reduction)
    return _reduce(head, context, x, weight * scale * scale, weight * scale, 0.0, reduction)


def denoising_loss(
    head: Head,
    context: Tensor | LinearContext,
    x_noisy: Tensor,
    noise: Tensor,
    sigma: float | Tensor,
    *,
    row_weight: float | Tensor | None = None,
    score_scale: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Conditional denoising loss of a score head: sum over dimensions of (s + noise / sigma)^2 / 2.

    Its optimum is that of :func:`csm_loss` at the same noise level, with less variance.

    Args:
        head, context: as for :func:`csm_loss`.
        x_noisy: (..., D), x + sigma * noise.
        noise: (..., D), standard normal.
        sigma: noise level > 0, a number or a tensor that broadcasts to x_noisy.
        row_weight, score_scale, reduction: as for :func:`csm_loss`.

    Returns:
        As for :func:`csm_loss`.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, device or shape.
    """
    weight, scale = _coefficients(row_weight, score_scale, x_noisy, reduction)
    if not isinstance(noise, Tensor) or noise.shape != x_noisy.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a tensor of the shape of x_noisy, {tuple(x_noisy.shape)}, got {got}")
    _check_broadcast("sigma", sigma, x_noisy)
    target = noise / sigma
    value = _reduce(head, context, x_noisy, weight * scale * scale, 0.0, weight * scale * target, reduction)
    constant = weight * target * target / 2
    return value + (constant.sum(-1) if reduction == "none" else constant.sum())


def _coefficients(
    row_weight: float | Tensor | None, score_scale: float | Tensor | None, x: Tensor, reduction: str
) -> tuple[float | Tensor, float | Tensor]:
    """The weight of each row in the reduced loss, and the factor of the head's output."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise ValueError("x must be a tensor with at least one axis, the last being the dimension axis")
    weight = 1.0 if row_weight is None else row_weight
    scale = 1.0 if score_scale is None else score_scale
    _check_broadcast("row_weight", weight, x)
    _check_broadcast("score_scale", scale, x)
    return weight / max(x.shape[:-1].numel(), 1) if reduction == "mean" else weight, scale


def _check_broadcast(name: str, value: float | Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        return
    sizes = list(zip(reversed(value.shape), reversed(x.shape)))
    if value.dim() > x.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"{name} must broadcast to the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
        )


def _reduce(
    head: Head,
    context: Tensor | LinearContext,
    x: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    gamma: float | Tensor,
    reduction: str,
) -> Tensor:
    found = head_parameters(head)
    if reduction != "none" and isinstance(found, HeadParameters):
        options: dict[str, Any] = {"activation": found.activation, "frequencies": found.frequencies}
        options |= {"alpha": alpha, "beta": beta, "gamma": gamma}
        if isinstance(context, LinearContext):
            return functional.linear_csm_loss(
                *context.layer, x, found.weights, found.biases, extra=context.extra, **options
            )
        return functional.csm_loss(context, x, found.weights, found.biases, **options)
    if isinstance(context, LinearContext):
        context = context.whole(x.shape[-1])
    s, ds = score_and_derivative(head, context, x)
    if s.dtype.itemsize < 4:
        s, ds = s.float(), ds.float()
    rows = alpha * s * s / 2 + beta * ds + gamma * s
    return rows.sum(-1) if reduction == "none" else rows.sum()
