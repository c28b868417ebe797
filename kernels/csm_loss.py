"""csm_loss: the composite score matching loss of N rows and all its gradients, in one pass."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .common.head import layers, output
from .common.head_backward import backward, places, read_tile
from .launch import HeadLaunch


class Coefficients(NamedTuple):
    """alpha, beta and gamma of the loss: one number, or one for each row (N,)."""

    alpha: Any
    beta: Any
    gamma: Any


@triton.jit
def coefficient(pointer, tile, PER_ROW: tl.constexpr):
    """A coefficient of the tile's rows, (M,) or one number."""
    if PER_ROW:
        value = tl.load(pointer + tile.first + tile.row, mask=tile.inside, other=0.0)
    else:
        value = tl.load(pointer)
    return value


@triton.jit(do_not_specialize=["rows"])
def csm_loss_kernel(
    context,
    x,
    head,
    coefficients,
    gradients,
    partials,
    rows: tl.int64,
    PER_ROW: tl.constexpr,
    NEED: tl.constexpr,
    S: tl.constexpr,
):
    """Bits 0, 1 and 2 of PER_ROW say whether alpha, beta and gamma have a number for each row."""
    COMPUTE: tl.constexpr = partials.dtype.element_ty
    # A program's slice: the gradients if they are needed, then the loss.
    LOSS: tl.constexpr = NEED.OFFSETS[-1] if NEED.PARAMS else 0
    partial = partials + tl.program_id(0).to(tl.int64) * (LOSS + 16)
    for t in tl.range(tl.program_id(0), (rows + S.M - 1) // S.M, tl.num_programs(0), disable_licm=True):
        tl.debug_barrier()  # the tile before has written its sums
        tile = read_tile(t, context, x, rows, head, COMPUTE, S)
        out = places(gradients, partial, tile, t)
        before = tl.load(out.partial + LOSS, mask=out.begun > 0, other=0.0)
        hidden = layers(tile.c, tile.x, tile.wave, head, S)
        be = tl.where(tile.inside, coefficient(coefficients.beta, tile, PER_ROW >> 1 & 1), 0.0)
        s, ds, kept = output(hidden[S.K - 1], tile.x, be, head, S)
        al = coefficient(coefficients.alpha, tile, PER_ROW & 1)
        ga = coefficient(coefficients.gamma, tile, PER_ROW >> 2)
        loss = tl.sum(tl.where(tile.inside, 0.5 * al * s * s + be * ds + ga * s, 0.0), 0)
        tl.store(out.partial + LOSS, before + loss)
        if NEED.CONTEXT or NEED.X or NEED.PARAMS:
            g = tl.where(tile.inside, al * s + ga, 0.0)
            backward(tile, hidden, kept, g, be, head, out, NEED, S)


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
    return loss, *head.gradients(csm_loss_kernel, (coefficients,), need, [loss], PER_ROW=per_row)
