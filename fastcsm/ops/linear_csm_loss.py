"""linear_csm_loss: schema, fake, autograd, and its composition of other ops, block of dimensions by block."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..reference.linear_csm_loss import Kernels, context_features
from ..reference.linear_csm_loss import linear_csm_loss as _reference
from ..reference.network import Head
from .library import define, for_autograd, halves
from .masked_linear import Layer
from .scalar_loss import scalar_loss, times
from .score_head import fake_grads

#: Bounds of a block on a processor, for its cache: its contexts, and the gradient of its part of the weight.
CONTEXT_BYTES = 4 << 20
WEIGHT_BYTES = 16 << 20
#: Bound of a block on other devices, where each costs launches: its contexts and their gradient, twice each.
DEVICE_BYTES = 256 << 20


class _Call(NamedTuple):
    """The arguments of the op."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    in_degrees: Tensor
    out_degrees: Tensor
    extra: Tensor
    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    frequencies: Tensor
    activation: str
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    need_hidden: bool
    need_linear: bool
    need_x: bool
    need_params: bool

    @property
    def features(self) -> int:
        """C, the context features of a dimension that the layer computes."""
        return context_features(self.extra, self.weights, self.frequencies)

    def block(self, start: int, size: int) -> "_Call":
        """The call of the dimensions from ``start`` on, at most ``size`` of them."""
        c, chosen = self.features, slice(start, start + size)

        def part(rows: Tensor) -> Tensor:
            if len(rows) == 1:
                return rows
            return rows.unflatten(0, (-1, len(self.weight) // c))[:, chosen].flatten(0, 1).contiguous()

        outputs = slice(start * c, (start + size) * c)
        return self._replace(
            weight=self.weight[outputs],
            bias=self.bias[outputs],
            out_degrees=self.out_degrees[outputs],
            extra=part(self.extra),
            x=part(self.x),
            alpha=part(self.alpha),
            beta=part(self.beta),
            gamma=part(self.gamma),
        )


def _compose(implementation: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    chain = functools.partial(_reference, kernels=Kernels(*map(implementation, Kernels._fields)))

    def run(*args: Any) -> Any:
        call = _Call(*args)
        dimensions = max(len(call.weight) // call.features, 1)
        size = block_size(len(call.x) // dimensions, call.weight, call.features + call.extra.shape[1])
        return chain(*call) if size >= dimensions else _by_blocks(chain, call, size)

    return run


def _by_blocks(chain: Callable[..., Any], call: _Call, size: int) -> Any:
    """The results of ``chain`` for ``size`` dimensions at a time, put together."""
    c = call.features
    wanted = (call.weight, call.need_linear), (call.bias, call.need_linear), (call.x, call.need_x)
    grad_weight, grad_bias, grad_x = (torch.empty_like(t) if need else t.new_empty(0) for t, need in wanted)
    sums: list[Tensor] = []
    for start in range(0, len(call.weight) // c, size):
        outputs = slice(start * c, (start + size) * c)
        loss, in_hidden, _, _, in_x, in_weights, in_biases = chain(
            *call.block(start, size), linear_grads=(grad_weight[outputs], grad_bias[outputs])
        )
        if call.need_x:
            rows = grad_x.view(-1, len(call.weight) // c)[:, start : start + size]
            rows.copy_(in_x.view(rows.shape))
        # Running sums, kept in the compute dtype.
        new = [term.to(loss.dtype) for term in (loss, in_hidden, *in_weights, *in_biases)]
        sums = [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new
    loss, grad_hidden, *params = [sums[0], *(total.to(call.hidden.dtype) for total in sums[1:])]
    return loss, grad_hidden, grad_weight, grad_bias, grad_x, *halves(params)


def block_size(batch: int, weight: Tensor, features: int) -> int:
    """Dimensions in a block, at least one, so that it stays within the bounds of the weight's device."""
    dimension = weight.element_size() * features
    if weight.device.type != "cpu":
        return max(DEVICE_BYTES // max(4 * batch * dimension, 1), 1)
    by_context = CONTEXT_BYTES // max(batch * dimension, 1)
    by_weight = WEIGHT_BYTES // max(weight.shape[1] * dimension, 1)
    return max(min(by_context, by_weight), 1)


def _fake(hidden, weight, bias, in_degrees, out_degrees, extra, x, *rest):
    weights, biases, _, _, alpha, *_, need_hidden, need_linear, need_x, need_params = rest
    need = need_hidden, need_x, need_params
    grad_hidden, grad_x, grad_weights, grad_biases = fake_grads(hidden, x, weights, biases, *need)
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


def _evaluate(activation, need, scale, *tensors):
    layer, (extra, x, frequencies, *rest) = tensors[:5], tensors[5:]
    coefficients, params = times(scale, rest[:3]), rest[3:]
    head = *halves(params), frequencies, activation
    loss, grad_hidden, *linear, grad_x, grad_weights, grad_biases = _forward(
        *layer, extra, x, *head, *coefficients, *need
    )
    need_hidden, need_linear, *needs = need
    grads = grad_hidden, grad_x, grad_weights, grad_biases
    grad_hidden, *rest = for_autograd(grads, (need_hidden, *needs), 4, len(params))
    return loss, (grad_hidden, *(linear if need_linear else [None] * 2), *[None] * 3, *rest)


def linear_csm_loss(
    layer: Layer, extra: Tensor, x: Tensor, head: Head, coefficients: Sequence[Tensor]
) -> Tensor:
    """The loss of :func:`fastcsm.reference.linear_csm_loss.linear_csm_loss`; differentiable once.

    ``coefficients`` are (alpha, beta, gamma).
    """
    params = (*head.weights, *head.biases)
    need = (
        layer.x.requires_grad,
        layer.weight.requires_grad or layer.bias.requires_grad,
        x.requires_grad,
        any(p.requires_grad for p in params),
    )
    if torch.is_grad_enabled() and any(need):
        tensors = (*layer, extra, x, head.frequencies, *coefficients, *params)
        return scalar_loss(_evaluate, head.activation, need, *tensors)
    return _forward(*layer, extra, x, *head, *coefficients, *[False] * 4)[0]
