"""csm_loss: the composite score matching loss of N rows and all its gradients, in one pass."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .head import layers, output
from .head_backward import Gradients, backward, read_tile
from .launch import HeadLaunch


class Coefficients(NamedTuple):
    """alpha, beta and gamma of the loss: one number, or one for each row (N,)."""

    alpha: Any
    beta: Any
    gamma: Any


@triton.jit(do_not_specialize=["rows", "per_row"])
def csm_loss_kernel(
    context,
    x,
    head,
    coefficients,
    gradients,
    partials,
    rows: tl.int64,
    per_row: tl.int32,
    NEED: tl.constexpr,
    S: tl.constexpr,
):
    """Bits 0, 1 and 2 of ``per_row`` say whether alpha, beta and gamma have a number for each row."""
    COMPUTE: tl.constexpr = partials.dtype.element_ty
    # A program's slice: the gradients if they are needed, then the loss.
    LOSS: tl.constexpr = NEED.OFFSETS[-1] if NEED.PARAMS else 0
    partial = partials + tl.program_id(0).to(tl.int64) * (LOSS + 16)
    loss = tl.zeros((S.M,), COMPUTE)
    for t in tl.range(tl.program_id(0), (rows + S.M - 1) // S.M, tl.num_programs(0), disable_licm=True):
        tile = read_tile(t, context, x, rows, head, COMPUTE, S)
        al = tl.load(coefficients.alpha + tile.rows * (per_row & 1), mask=tile.inside, other=0.0)
        be = tl.load(coefficients.beta + tile.rows * (per_row >> 1 & 1), mask=tile.inside, other=0.0)
        ga = tl.load(coefficients.gamma + tile.rows * (per_row >> 2), mask=tile.inside, other=0.0)
        hidden = layers(tile.c, tile.x, tile.wave, head, S)
        s, ds, kept = output(hidden[S.K - 1], tile.x, be, head, S)
        loss += tl.where(tile.inside, 0.5 * al * s * s + be * ds + ga * s, 0.0)
        if NEED.CONTEXT or NEED.X or NEED.PARAMS:
            out = Gradients(
                gradients.grad_context, gradients.grad_x, partial, tl.minimum(t - tl.program_id(0), 1)
            )
            backward(tile, hidden, kept, al * s + ga, be, head, out, NEED, S)
    tl.store(partial + LOSS, tl.sum(loss, 0))


def csm_loss(
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    need_context: bool,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Arguments and results of :func:`fastcsm.reference.csm_loss.csm_loss`."""
    head = HeadLaunch("csm_loss", context, x, weights, biases, frequencies, activation)
    coefficients = Coefficients(alpha, beta, gamma)
    per_row = sum((coefficient.numel() > 1) << k for k, coefficient in enumerate(coefficients))
    loss = alpha.new_empty(())
    need = need_context, need_x, need_params
    return loss, *head.gradients(csm_loss_kernel, (coefficients,), need, [loss], (per_row,))
