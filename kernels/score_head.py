"""score_head: the score and its derivative of N rows, and the backward pass for any upstream pair."""

import triton
import triton.language as tl
from torch import Tensor

from .head import forward, read_context, waves
from .head_backward import backward
from .head_sums import put_sums, zero_sums
from .launch import HeadLaunch
from .points import evaluate, shares_of_rows


@triton.jit(do_not_specialize=["rows"])
def score_head_fwd_kernel(
    context,
    x,
    weights,
    biases,
    frequencies,
    score,
    derivative,
    rows: tl.int64,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    M: tl.constexpr = TILE[0]
    STORE: tl.constexpr = x.dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if STORE == tl.float64 else tl.float32
    for t in range(tl.program_id(0), tl.cdiv(rows, M), tl.num_programs(0)):
        r = t * M + tl.arange(0, M).to(tl.int64)
        inside = r < rows
        c = read_context(context, r, inside, C, TILE)
        v = tl.load(x + r, mask=inside, other=0.0).to(COMPUTE)
        if DERIVATIVE:
            wave = waves(v, frequencies, E, TILE)
            s, ds, _ = forward(c, v, wave, weights, biases, C, E, WIDTHS, TILE, ACTIVATION, P)
            tl.store(derivative + r, ds.to(STORE), mask=inside)
        else:
            share = shares_of_rows(c, v, weights[0], biases[0], C, C + 1 + 2 * E, WIDTHS[0], TILE, P)
            s, _ = evaluate(share, v, weights, biases, frequencies, C, E, WIDTHS, TILE, ACTIVATION, False, P)
        tl.store(score + r, s.to(STORE), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def score_head_bwd_kernel(
    context,
    x,
    weights,
    biases,
    frequencies,
    grad_score,
    grad_derivative,
    grad_context,
    grad_x,
    partials,
    rows: tl.int64,
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
    partial = partials + tl.program_id(0).to(tl.int64) * OFFSETS[-1]
    zero = (rows.to(tl.int64) >> 63).to(COMPUTE)
    sums = ()
    if RESIDENT:
        for k in tl.static_range(len(WIDTHS) + 1):
            sums = sums + (zero_sums(tl.zeros((M,), COMPUTE), k, C, E, WIDTHS, TILE),)
    for t in range(tl.program_id(0), tl.cdiv(rows, M), tl.num_programs(0)):
        r = t * M + tl.arange(0, M).to(tl.int64)
        inside = r < rows
        c = read_context(context, r, inside, C, TILE)
        v = tl.load(x + r, mask=inside, other=0.0).to(COMPUTE)
        wave = waves(v, frequencies, E, TILE)
        _, _, hidden = forward(c, v, wave, weights, biases, C, E, WIDTHS, TILE, ACTIVATION, P)
        sums = backward(
            c,
            v,
            wave,
            hidden,
            tl.load(grad_score + r, mask=inside, other=0.0).to(COMPUTE),
            tl.load(grad_derivative + r, mask=inside, other=0.0).to(COMPUTE),
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


def score_head(
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    derivative: bool = True,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`fastcsm.reference.score_head.score_head`."""
    head = HeadLaunch("score_head", context, x, weights, biases, frequencies, activation)
    s, ds = x.new_empty(x.shape), x.new_empty(x.shape if derivative else 0)
    head.run(score_head_fwd_kernel, (*head.tensors, s, ds, len(x)), DERIVATIVE=derivative)
    return s, ds


def score_head_backward(
    grad_score: Tensor,
    grad_derivative: Tensor,
    context: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    frequencies: Tensor,
    activation: str,
    need_context: bool,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Arguments and results of :func:`fastcsm.reference.score_head.score_head_backward`."""
    head = HeadLaunch("csm_loss", context, x, weights, biases, frequencies, activation)
    grad_context, grad_x = head.gradients(need_context, need_x)
    partials = head.partials(need_params, 0)
    head.run(
        score_head_bwd_kernel,
        (*head.tensors, grad_score, grad_derivative, grad_context, grad_x, partials, len(x)),
        NEED_CONTEXT=need_context,
        NEED_X=need_x,
        NEED_PARAMS=need_params,
    )
    return grad_context, grad_x, *head.reduce(partials, need_params, [])
