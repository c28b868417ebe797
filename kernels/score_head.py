"""score_head: the score and its derivative of N rows, and the backward pass for any upstream pair."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .common.head import layers, output
from .common.head_backward import backward, places, read_tile
from .common.points import evaluate, shares_of_rows
from .launch import HeadLaunch


@triton.jit(do_not_specialize=["rows"])
def score_head_fwd_kernel(
    context, x, head, score, derivative, rows: tl.int64, DERIVATIVE: tl.constexpr, S: tl.constexpr
):
    STORE: tl.constexpr = x.dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if STORE == tl.float64 else tl.float32
    for t in range(tl.program_id(0), (rows + S.M - 1) // S.M, tl.num_programs(0)):
        tile = read_tile(t, context, x, rows, head, COMPUTE, S)
        if DERIVATIVE:
            hidden = layers(tile.c, tile.x, tile.wave, head, S)
            s, ds, _ = output(hidden[S.K - 1], tile.x, tile.x, head, S)
            tl.store(derivative + tile.first + tile.row, ds.to(STORE), mask=tile.inside)
        else:
            s, _ = evaluate(shares_of_rows(tile.c, tile.x, head, S), tile.x, head, False, S)
        tl.store(score + tile.first + tile.row, s.to(STORE), mask=tile.inside)


class Upstream(NamedTuple):
    """dL/ds and dL/ds', (N,)."""

    grad_score: Any
    grad_derivative: Any


@triton.jit(do_not_specialize=["rows"])
def score_head_bwd_kernel(
    context, x, head, upstream, gradients, partials, rows: tl.int64, NEED: tl.constexpr, S: tl.constexpr
):
    COMPUTE: tl.constexpr = partials.dtype.element_ty
    partial = partials + tl.program_id(0).to(tl.int64) * NEED.OFFSETS[-1]
    for t in tl.range(tl.program_id(0), (rows + S.M - 1) // S.M, tl.num_programs(0), disable_licm=True):
        tl.debug_barrier()  # the tile before has written its sums
        tile = read_tile(t, context, x, rows, head, COMPUTE, S)
        g = tl.load(upstream.grad_score + tile.first + tile.row, mask=tile.inside, other=0.0).to(COMPUTE)
        p = tl.load(upstream.grad_derivative + tile.first + tile.row, mask=tile.inside, other=0.0).to(COMPUTE)
        hidden = layers(tile.c, tile.x, tile.wave, head, S)
        _, _, kept = output(hidden[S.K - 1], tile.x, p, head, S)
        backward(tile, hidden, kept, g, p, head, places(gradients, partial, tile, t), NEED, S)


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
    head = HeadLaunch("score_head_backward", context, x, weights, biases, frequencies, activation)
    need = need_context, need_x, need_params
    return head.gradients(score_head_bwd_kernel, (Upstream(grad_score, grad_derivative),), need, [])
