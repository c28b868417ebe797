"""A score head at points whose context does not change: the inner loop of dynamics, quadrature and flow.

``share`` is W_c c + b of the first layer, in chunks of B columns, computed once a row: (M, B) for M rows, or
(1, B) where all points of a tile are of one row.
"""

import triton
import triton.language as tl

from .activations import activate
from .head import add_dot, matrix, pieces, times, vector, wave_inputs, wave_weights, waves


@triton.jit
def context_chunk(c, like, head, J, S: tl.constexpr):
    """Chunk J of W_c c + b for the contexts in memory, (M, B)."""
    bias = vector(head.biases[0], J * S.B, S.WIDTHS[0], 1, S.B, like)
    a = tl.zeros((S.M, S.B), like.dtype) + bias[None, :]
    for i in tl.static_range(len(c)):
        w = matrix(head.weights[0], J * S.B, i * S.BC, S.WIDTHS[0], S.GIVEN, S.STRIDE, S.B, S.BC)
        a = add_dot(c[i], tl.trans(w), a, S)
    return a


@triton.jit
def add_x(a, x, wave, head, J, TANGENT: tl.constexpr, S: tl.constexpr):
    """Chunk J of (a, t), (M, B), from that of W_c c + b; t is w_x, (1, B), without frequencies or TANGENT."""
    wx = vector(head.weights[0] + S.C, J * S.B, S.WIDTHS[0], S.STRIDE, S.B, x)[None, :]
    a += x[:, None] * wx
    t = wx
    if S.E > 0:
        w = tl.trans(wave_weights(head, J, S.B, S))
        v, d = wave_inputs(wave, w.dtype)
        a = add_dot(v, w, a, S)
        if TANGENT:
            t = add_dot(d, w, tl.zeros((S.M, S.B), x.dtype) + wx, S)
    return a, t


@triton.jit
def bias_chunks(bias, like, WIDTH: tl.constexpr, S: tl.constexpr):
    """The biases of a layer under every row: chunks (M, B)."""
    chunks = ()
    for j in tl.static_range(pieces(WIDTH, S.B)):
        b = vector(bias, j * S.B, WIDTH, 1, S.B, like)
        chunks = chunks + (tl.zeros((S.M, S.B), like.dtype) + b[None, :],)
    return chunks


@triton.jit
def zero_chunks(like, WIDTH: tl.constexpr, S: tl.constexpr):
    """Zeros for the units of a layer: chunks (M, B)."""
    chunks = ()
    for _ in tl.static_range(pieces(WIDTH, S.B)):
        chunks = chunks + (tl.zeros((S.M, S.B), like.dtype),)
    return chunks


@triton.jit
def add_product(chunks, z, weight, I, IN: tl.constexpr, OUT: tl.constexpr, S: tl.constexpr):
    """Chunks (M, B) of the outputs plus W z for chunk I of the inputs."""
    sums = ()
    for j in tl.static_range(len(chunks)):
        w = tl.trans(matrix(weight, j * S.B, I * S.B, OUT, IN, IN, S.B, S.B))
        sums = sums + (add_dot(z, w, chunks[j], S),)
    return sums


@triton.jit
def output(primal, tangent, head, like, S: tl.constexpr):
    """s and s' from the last hidden layer, (M,), equal on all lanes; s' is zero if there is no t."""
    s, ds = tl.zeros_like(like), tl.zeros_like(like)
    for j in tl.static_range(len(primal)):
        w = vector(head.weights[S.K], j * S.B, S.WIDTHS[S.K - 1], 1, S.B, like)[None, :]
        f, d, _ = activate(primal[j], S.ACTIVATION)
        s += tl.sum(times(f, w), 1)
        if len(tangent) > 0:
            ds += tl.sum(times(d * tangent[j], w), 1)
    return s + tl.load(head.biases[S.K]).to(like.dtype), ds


@triton.jit
def shares_of_rows(c, like, head, S: tl.constexpr):
    """W_c c + b of M rows for the contexts in memory, chunks (M, B)."""
    share = ()
    for j in tl.static_range(pieces(S.WIDTHS[0], S.B)):
        share = share + (context_chunk(c, like, head, j, S),)
    return share


@triton.jit
def share_of_row(context, like, head, S: tl.constexpr):
    """W_c c + b of the one row at ``context``, chunks (1, B)."""
    share = ()
    for j in tl.static_range(pieces(S.WIDTHS[0], S.B)):
        a = vector(head.biases[0], j * S.B, S.WIDTHS[0], 1, S.B, like)[None, :]
        for i in tl.static_range(pieces(S.GIVEN, S.BC)):
            w = matrix(head.weights[0], j * S.B, i * S.BC, S.WIDTHS[0], S.GIVEN, S.STRIDE, S.B, S.BC).to(
                like.dtype
            )
            a += tl.sum(times(w, vector(context, i * S.BC, S.GIVEN, 1, S.BC, like)[None, :]), 1)[None, :]
        share = share + (a,)
    return share


@triton.jit
def add_feature(share, feature, head, like, S: tl.constexpr):
    """``share`` with the last context feature, (M, 1) or a scalar, which is not in memory."""
    sums = ()
    for j in tl.static_range(len(share)):
        w = vector(head.weights[0] + S.GIVEN, j * S.B, S.WIDTHS[0], S.STRIDE, S.B, like)[None, :]
        sums = sums + (share[j] + feature * w,)
    return sums


@triton.jit
def evaluate(share, x, head, TANGENT: tl.constexpr, S: tl.constexpr):
    """(s, s') at the points x, (M,) each; s' is zero without TANGENT."""
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    wave = waves(x, head, S)
    primal, tangent = (), ()
    if S.K == 1:
        for j in tl.static_range(len(share)):
            a, t = add_x(share[j], x, wave, head, j, TANGENT, S)
            primal = primal + (a,)
            if TANGENT:
                tangent = tangent + (t,)
    for k in tl.static_range(1, S.K):
        z_sums = bias_chunks(head.biases[k], x, S.WIDTHS[k], S)
        u_sums = zero_chunks(x, S.WIDTHS[k] if TANGENT else 0, S)
        for i in tl.static_range(pieces(S.WIDTHS[k - 1], S.B)):
            if k == 1:
                a, t = add_x(share[i], x, wave, head, i, TANGENT, S)
            else:
                a = primal[i]
                if TANGENT:
                    t = tangent[i]
            f, d, _ = activate(a, S.ACTIVATION)
            z_sums = add_product(z_sums, f.to(STORE), head.weights[k], i, S.WIDTHS[k - 1], S.WIDTHS[k], S)
            if TANGENT:
                u = (d * t).to(STORE)
                u_sums = add_product(u_sums, u, head.weights[k], i, S.WIDTHS[k - 1], S.WIDTHS[k], S)
        primal, tangent = z_sums, u_sums
    return output(primal, tangent, head, x, S)
