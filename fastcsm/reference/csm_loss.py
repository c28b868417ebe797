"""csm_loss: the composite score matching loss of N rows and all its gradients."""

from collections.abc import Sequence

from torch import Tensor

from .network import Head
from .score_head import backward, forward


def csm_loss(
    context: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    frequencies: Tensor,
    activation: str,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    need_context: bool,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Sum over rows of alpha s^2 / 2 + beta s' + gamma s, and its gradients.

    Args:
        context, x, weights, biases, frequencies, activation: as for
            :func:`fastcsm.reference.score_head.score_head`.
        alpha, beta, gamma: row coefficients, (1,) or (N,), in float32 for 16-bit inputs.
        need_context, need_x, need_params: which gradients to compute.

    Returns:
        (loss, grad_context, grad_x, grad_weights, grad_biases): loss is a scalar in the dtype of the
        coefficients, the gradients have the dtype of the inputs and are empty where not needed.
    """
    head = Head(weights, biases, frequencies, activation)
    trace = forward(context, x, head)
    s, ds = trace.score.to(alpha.dtype), trace.derivative.to(alpha.dtype)
    loss = (alpha * s * s / 2 + beta * ds + gamma * s).sum()
    upstream = (alpha * s + gamma).to(x.dtype), beta.expand_as(s).to(x.dtype)
    return loss, *backward(upstream, trace, head, (need_context, need_x, need_params))
