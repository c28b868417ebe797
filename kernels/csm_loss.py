"""csm_loss: the composite score matching loss of N rows and all its gradients, in one pass."""

import triton
import triton.language as tl
from torch import Tensor

from .head import forward, read_context, waves
from .head_backward import backward
from .head_sums import put_sums, zero_sums
from .launch import HeadLaunch


@triton.jit(do_not_specialize=["rows", "alpha_step", "beta_step", "gamma_step"])
def csm_loss_kernel(
    context,
    x,
    weights,
    biases,
    frequencies,
    alpha,
    beta,
    gamma,
    grad_context,
    grad_x,
    partials,
    rows: tl.int64,
    alpha_step: tl.int32,
    beta_step: tl.int32,
    gamma_step: tl.int32,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    NEED_CONTEXT: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    M: tl.constexpr = TILE[0]
    COMPUTE: tl.constexpr = partials.dtype.element_ty
    # A program's slice: the gradients if they are needed, then the loss.
    LOSS: tl.constexpr = OFFSETS[-1] if NEED_PARAMS else 0
    partial = partials + tl.program_id(0).to(tl.int64) * (LOSS + 1)
    loss = tl.zeros((M,), COMPUTE)
    zero = (rows.to(tl.int64) >> 63).to(COMPUTE)
    sums = ()
    if RESIDENT:
        for k in tl.static_range(len(WIDTHS) + 1):
            sums = sums + (zero_sums(loss, k, C, E, WIDTHS, TILE),)
    for t in range(tl.program_id(0), tl.cdiv(rows, M), tl.num_programs(0)):
        r = t * M + tl.arange(0, M).to(tl.int64)
        inside = r < rows
        c = read_context(context, r, inside, C, TILE)
        v = tl.load(x + r, mask=inside, other=0.0).to(COMPUTE)
        wave = waves(v, frequencies, E, TILE)
        s, ds, hidden = forward(c, v, wave, weights, biases, C, E, WIDTHS, TILE, ACTIVATION, P)
        al = tl.load(alpha + r * alpha_step, mask=inside, other=0.0)
        be = tl.load(beta + r * beta_step, mask=inside, other=0.0)
        ga = tl.load(gamma + r * gamma_step, mask=inside, other=0.0)
        loss += tl.where(inside, 0.5 * al * s * s + be * ds + ga * s, 0.0)
        if NEED_CONTEXT or NEED_X or NEED_PARAMS:
            sums = backward(
                c,
                v,
                wave,
                hidden,
                al * s + ga,
                be,
                zero,
                weights,
                biases,
                sums,
                partial,
                grad_context,
                grad_x,
                r,
                inside,
                C,
                E,
                WIDTHS,
                TILE,
                OFFSETS,
                ACTIVATION,
                P,
                NEED_CONTEXT,
                NEED_X,
                NEED_PARAMS,
                RESIDENT,
            )
    if RESIDENT:
        for k in tl.static_range(len(WIDTHS) + 1):
            put_sums(partial, sums[k], k, C, E, WIDTHS, TILE, OFFSETS)
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
    grad_context, grad_x = head.gradients(need_context, need_x)
    partials = head.partials(need_params, 1)
    steps = [int(coefficient.numel() > 1) for coefficient in (alpha, beta, gamma)]
    head.run(
        csm_loss_kernel,
        (*head.tensors, alpha, beta, gamma, grad_context, grad_x, partials, len(x), *steps),
        NEED_CONTEXT=need_context,
        NEED_X=need_x,
        NEED_PARAMS=need_params,
    )
    loss = alpha.new_empty(())
    grad_weights, grad_biases = head.reduce(partials, need_params, [loss])
    return loss, grad_context, grad_x, grad_weights, grad_biases
