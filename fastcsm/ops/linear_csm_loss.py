"""linear_csm_loss: schema, fake, autograd, and its composition of other ops, block of dimensions by block."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..reference.linear_csm_loss import Kernels, context_features
from ..reference.linear_csm_loss import linear_csm_loss as _reference
from .library import define
from .scalar_loss import scalar_loss
from .score_head import fake_grads

#: Bounds of a block on a processor, for its cache: its contexts, and the gradient of its part of the weight.
CONTEXT_BYTES = 4 << 20
WEIGHT_BYTES = 16 << 20
#: Bound of a block on other devices, where each costs launches: its contexts and their gradient, twice each.
DEVICE_BYTES = 256 << 20


def _compose(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    chain: Callable[..., Any] = functools.partial(
        _reference, kernels=Kernels(*map(implementation, Kernels._fields))
    )

    def run(
        hidden,
        weight,
        bias,
        in_degrees,
        out_degrees,
        extra,
        x,
        weights,
        biases,
        frequencies,
        activation,
        *rest,
    ):
        *coefficients, need_hidden, need_linear, need_x, need_params = rest
        batch, c = len(hidden), context_features(extra, weights, frequencies)
        dimensions = len(weight) // c
        size = block_size(batch, weight, c + extra.shape[1])
        layer = hidden, weight, bias, in_degrees, out_degrees
        head = weights, biases, frequencies, activation
        if size >= dimensions:
            return chain(*layer, extra, x, *head, *rest)
        grad_weight, grad_bias, grad_x = (
            torch.empty_like(t) if need else t.new_empty(0)
            for t, need in ((weight, need_linear), (bias, need_linear), (x, need_x))
        )
        sums: list[Tensor] = []
        for start in range(0, dimensions, size):
            block = slice(start, start + size)
            outputs = slice(start * c, (start + size) * c)

            def part(rows: Tensor, block: slice = block) -> Tensor:
                if len(rows) == 1:
                    return rows
                return rows.unflatten(0, (batch, dimensions))[:, block].flatten(0, 1).contiguous()

            loss, in_hidden, _, _, in_x, in_weights, in_biases = chain(
                hidden,
                weight[outputs],
                bias[outputs],
                in_degrees,
                out_degrees[outputs],
                part(extra),
                part(x),
                *head,
                *map(part, coefficients),
                *(need_hidden, need_linear, need_x, need_params),
                linear_grads=(grad_weight[outputs], grad_bias[outputs]),
            )
            if need_x:
                rows = grad_x.view(batch, dimensions)[:, block]
                rows.copy_(in_x.view(rows.shape))
            sums = _add(sums, [loss, in_hidden, *in_weights, *in_biases], loss.dtype)
        loss, grad_hidden, *params = [sums[0], *(total.to(hidden.dtype) for total in sums[1:])]
        layers = len(params) // 2
        return loss, grad_hidden, grad_weight, grad_bias, grad_x, params[:layers], params[layers:]

    return run


def _add(sums: list[Tensor], terms: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Running sums, kept in the compute dtype."""
    if not sums:
        return [term.to(dtype) for term in terms]
    return [total.add_(term) for total, term in zip(sums, terms, strict=True)]


def block_size(batch: int, weight: Tensor, features: int) -> int:
    """Dimensions in a block, at least one, so that it stays within the bounds of the weight's device."""
    dimension = weight.element_size() * features
    if weight.device.type != "cpu":
        return max(DEVICE_BYTES // max(4 * batch * dimension, 1), 1)
    by_context = CONTEXT_BYTES // max(batch * dimension, 1)
    by_weight = WEIGHT_BYTES // max(weight.shape[1] * dimension, 1)
    return max(min(by_context, by_weight), 1)


def _fake(
    hidden,
    weight,
    bias,
    in_degrees,
    out_degrees,
    extra,
    x,
    weights,
    biases,
    frequencies,
    activation,
    alpha,
    beta,
    gamma,
    need_hidden,
    need_linear,
    need_x,
    need_params,
):
    grad_hidden, grad_x, grad_weights, grad_biases = fake_grads(
        hidden, x, weights, biases, need_hidden, need_x, need_params
    )
    linear = [torch.empty_like(t) if need_linear else t.new_empty(0) for t in (weight, bias)]
    return alpha.new_empty(()), grad_hidden, *linear, grad_x, grad_weights, grad_biases


_forward = define(
    "linear_csm_loss(Tensor hidden, Tensor weight, Tensor bias, Tensor in_degrees, Tensor out_degrees,"
    " Tensor extra, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, str activation,"
    " Tensor alpha, Tensor beta, Tensor gamma,"
    " bool need_hidden, bool need_linear, bool need_x, bool need_params)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    _fake,
)
backends.compose("linear_csm_loss", ("masked_linear", "csm_loss"), _compose)


def _evaluate(
    activation,
    need,
    hidden,
    weight,
    bias,
    in_degrees,
    out_degrees,
    extra,
    x,
    frequencies,
    alpha,
    beta,
    gamma,
    *params,
):
    layers = len(params) // 2
    layer = hidden, weight, bias, in_degrees, out_degrees
    head = list(params[:layers]), list(params[layers:]), frequencies, activation
    loss, grad_hidden, grad_weight, grad_bias, grad_x, grad_weights, grad_biases = _forward(
        *layer, extra, x, *head, alpha, beta, gamma, *need
    )
    need_hidden, need_linear, need_x, need_params = need
    return loss, [
        grad_hidden if need_hidden else None,
        grad_weight if need_linear else None,
        grad_bias if need_linear else None,
        *[None] * 3,
        grad_x if need_x else None,
        *[None] * 4,
        *([*grad_weights, *grad_biases] if need_params else [None] * len(params)),
    ]


def linear_csm_loss(
    layer: Sequence[Tensor],
    extra: Tensor,
    x: Tensor,
    head: tuple[list[Tensor], list[Tensor], Tensor, str],
    coefficients: Sequence[Tensor],
) -> Tensor:
    """The loss of :func:`fastcsm.reference.linear_csm_loss.linear_csm_loss`; differentiable once.

    ``layer`` is (hidden, weight, bias, in_degrees, out_degrees), ``head`` (weights, biases, frequencies,
    activation) and ``coefficients`` (alpha, beta, gamma).
    """
    weights, biases, frequencies, activation = head
    params = (*weights, *biases)
    hidden, weight, bias, *_ = layer
    need = (
        hidden.requires_grad,
        weight.requires_grad or bias.requires_grad,
        x.requires_grad,
        any(p.requires_grad for p in params),
    )
    if torch.is_grad_enabled() and any(need):
        tensors = (*layer, extra, x, frequencies, *coefficients, *params)
        return scalar_loss(_evaluate, activation, need, *tensors)
    return _forward(*layer, extra, x, *head, *coefficients, *[False] * 4)[0]
