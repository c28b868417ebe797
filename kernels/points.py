"""A score head at points whose context does not change: the inner loop of dynamics, quadrature and flow.

``share`` is W_c c + b of the first layer, in chunks of B columns, computed once a row: (M, B) for M rows, or
(1, B) where all points of a tile are of one row. TILE and P are as in ``head.py``.
"""

import triton
import triton.language as tl

from .activations import activate
from .head import (
    add_product,
    add_x,
    bias_chunks,
    context_chunk,
    matrix,
    output,
    times,
    vector,
    waves,
    zero_chunks,
)


@triton.jit
def shares_of_rows(
    c,
    like,
    weight,
    bias,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """W_c c + b of M rows, chunks (M, B), for the first C columns of the weight."""
    share = ()
    for j in tl.static_range((WIDTH + TILE[1] - 1) // TILE[1]):
        share = share + (context_chunk(c, like, weight, bias, 0.0, j, C, STRIDE, WIDTH, TILE, P),)
    return share


@triton.jit
def share_of_row(
    context,
    like,
    weight,
    bias,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """W_c c + b of the one row of C numbers at ``context``, chunks (1, B)."""
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    share = ()
    for j in tl.static_range((WIDTH + B - 1) // B):
        a = vector(bias, j * B, WIDTH, 1, B, like)
        for i in tl.static_range((C + BC - 1) // BC):
            w = matrix(weight, j * B, i * BC, WIDTH, C, STRIDE, B, BC).to(like.dtype)
            a += tl.sum(times(w, vector(context, i * BC, C, 1, BC, like)), 1)[None, :]
        share = share + (a,)
    return share


@triton.jit
def add_feature(
    share,
    feature,
    weight,
    like,
    COLUMN: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """``share`` with one more context feature, (M, 1) or a scalar, that column COLUMN of the weight reads."""
    B: tl.constexpr = TILE[1]
    sums = ()
    for j in tl.static_range(len(share)):
        sums = sums + (share[j] + feature * vector(weight + COLUMN, j * B, WIDTH, STRIDE, B, like),)
    return sums


@triton.jit
def evaluate(
    share,
    x,
    weights,
    biases,
    frequencies,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TANGENT: tl.constexpr,
    P: tl.constexpr,
):
    """(s, s') at the points x, (M,) each; s' is zero without TANGENT."""
    K: tl.constexpr = len(WIDTHS)
    M: tl.constexpr = TILE[0]
    B: tl.constexpr = TILE[1]
    STORE: tl.constexpr = weights[0].dtype.element_ty
    wave = waves(x, frequencies, E, TILE)
    primal, tangent = (), ()
    if K == 1:
        for j in tl.static_range(len(share)):
            a, t = add_x(share[j], x, wave, weights[0], 0.0, j, C, E, WIDTHS[0], TILE, TANGENT, P)
            primal = primal + (a,)
            if TANGENT:
                tangent = tangent + (t,)
    for k in tl.static_range(1, K):
        z_sums = bias_chunks(biases[k], x, WIDTHS[k], M, B)
        u_sums = ()
        if TANGENT:
            u_sums = zero_chunks(x, WIDTHS[k], M, B)
        for i in tl.static_range((WIDTHS[k - 1] + B - 1) // B):
            if k == 1:
                a, t = add_x(share[i], x, wave, weights[0], 0.0, i, C, E, WIDTHS[0], TILE, TANGENT, P)
            else:
                a = primal[i]
                if TANGENT:
                    t = tangent[i]
            f, d, _ = activate(a, ACTIVATION)
            z_sums = add_product(z_sums, f.to(STORE), weights[k], i, WIDTHS[k - 1], WIDTHS[k], B, P)
            if TANGENT:
                u = (d * t).to(STORE)
                u_sums = add_product(u_sums, u, weights[k], i, WIDTHS[k - 1], WIDTHS[k], B, P)
        primal, tangent = z_sums, u_sums
    return output(primal, tangent, weights[K], biases[K], x, WIDTHS[K - 1], B, ACTIVATION, ALIKE=True)
