"""A score head on one tile of M rows, forward and backward: what every kernel of the head shares.

Hidden units are tuples of column chunks (M, B), so that any width fits; units past a layer's width are zero
columns of its weights. Primal and tangent rows meet the same weight tile.

TILE is (M, B, BC, BE): rows, chunk of hidden units, chunk of the context, and frequencies padded for a
product. Sums are in the dtype of x, float32 or float64, and operands of products in that of the weights; P is
the products' precision. The equations are those of ``fastcsm.reference.score_head``.
"""

import triton
import triton.language as tl

from .activations import activate


@triton.jit
def matrix(
    pointer,
    row,
    column,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Tile (R, C) at (row, column) of a row-major matrix, zero from row ROWS and from column END on.

    row and column are multiples of R and C.
    """
    r = row + tl.arange(0, R)[:, None]
    c = column + tl.arange(0, C)[None, :]
    if ROWS % R == 0 and END % C == 0:
        value = tl.load(pointer + r * STRIDE + c)
    else:
        value = tl.load(pointer + r * STRIDE + c, mask=(r < ROWS) & (c < END), other=0.0)
    return value


@triton.jit
def vector(pointer, first, END: tl.constexpr, STRIDE: tl.constexpr, B: tl.constexpr, like):
    """Entries first, first + 1, ... as (1, B) in the dtype of ``like``, zero from END on; B divides first."""
    i = first + tl.arange(0, B)
    if END % B == 0:
        value = tl.load(pointer + i * STRIDE)
    else:
        value = tl.load(pointer + i * STRIDE, mask=i < END, other=0.0)
    return value.to(like.dtype)[None, :]


@triton.jit
def read_context(context, rows, inside, C: tl.constexpr, TILE: tl.constexpr):
    """Contexts of int64 rows as chunks (M, BC), zero outside."""
    chunks = ()
    for i in tl.static_range((C + TILE[2] - 1) // TILE[2]):
        c = i * TILE[2] + tl.arange(0, TILE[2])[None, :]
        chunks = chunks + (
            tl.load(context + rows[:, None] * C + c, mask=inside[:, None] & (c < C), other=0.0),
        )
    return chunks


@triton.jit
def waves(x, frequencies, E: tl.constexpr, TILE: tl.constexpr):
    """(w, sin(w x), cos(w x)): (1, BE) and twice (M, BE); () without frequencies."""
    if E > 0:
        w = vector(frequencies, 0, E, 1, TILE[3], x)
        phase = x[:, None] * w
        result = (w, tl.sin(phase), tl.cos(phase))
    else:
        result = ()
    return result


@triton.jit
def context_chunk(
    c,
    like,
    weight,
    bias,
    zero,
    J,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """Chunk J of W_c c + b for the first C columns of the first layer's weight, STRIDE in all; (M, B)."""
    B: tl.constexpr = TILE[1]
    M: tl.constexpr = TILE[0]
    a = tl.zeros((M, B), like.dtype) + (vector(bias, J * B, WIDTH, 1, B, like) + zero)
    for i in tl.static_range(len(c)):
        w = matrix(weight, J * B, i * TILE[2], WIDTH, C, STRIDE, B, TILE[2])
        a = tl.dot(c[i], tl.trans(w), a, input_precision=P, out_dtype=a.dtype)
    return a


@triton.jit
def add_x(
    a,
    x,
    wave,
    weight,
    zero,
    J,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    TANGENT: tl.constexpr,
    P: tl.constexpr,
):
    """Chunk J of (a, t), (M, B), from that of W_c c + b; t is w_x, (1, B), without frequencies or TANGENT."""
    M: tl.constexpr = TILE[0]
    B: tl.constexpr = TILE[1]
    BE: tl.constexpr = TILE[3]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    wx = vector(weight + C, J * B, WIDTH, STRIDE, B, x) + zero
    a += x[:, None] * wx
    t = wx
    if E > 0:
        w, sin, cos = wave
        ws = tl.trans(matrix(weight + C + 1, J * B, 0, WIDTH, E, STRIDE, B, BE))
        wc = tl.trans(matrix(weight + C + 1 + E, J * B, 0, WIDTH, E, STRIDE, B, BE))
        a = tl.dot(sin.to(ws.dtype), ws, a, input_precision=P, out_dtype=a.dtype)
        a = tl.dot(cos.to(ws.dtype), wc, a, input_precision=P, out_dtype=a.dtype)
        if TANGENT:
            t = tl.zeros((M, B), x.dtype) + wx
            t = tl.dot((w * cos).to(ws.dtype), ws, t, input_precision=P, out_dtype=t.dtype)
            t = tl.dot((-w * sin).to(ws.dtype), wc, t, input_precision=P, out_dtype=t.dtype)
    return a, t


@triton.jit
def units(
    pair,
    c,
    x,
    wave,
    weight,
    bias,
    zero,
    J,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """Chunk J of a hidden layer (a, t): that of ``pair``, or if that is () the first layer, computed here."""
    if len(pair) > 0:
        a, t = pair[0][J], pair[1][J]
    else:
        a = context_chunk(c, x, weight, bias, zero, J, C, C + 1 + 2 * E, WIDTH, TILE, P)
        a, t = add_x(a, x, wave, weight, zero, J, C, E, WIDTH, TILE, True, P)
    return a, t


@triton.jit
def add_units(
    primal,
    tangent,
    a,
    t,
    weight,
    I,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    B: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
):
    """(primal, tangent) of a layer plus what chunk I of the one below, (a, t), adds to them."""
    f, d, _ = activate(a, ACTIVATION)
    z, u = f.to(weight.dtype.element_ty), (d * t).to(weight.dtype.element_ty)
    primal = add_product(primal, z, weight, I, IN, OUT, B, P)
    return primal, add_product(tangent, u, weight, I, IN, OUT, B, P)


@triton.jit
def bias_chunks(bias, like, WIDTH: tl.constexpr, M: tl.constexpr, B: tl.constexpr):
    """The biases of a layer under every row: chunks (M, B)."""
    chunks = ()
    for j in tl.static_range((WIDTH + B - 1) // B):
        chunks = chunks + (tl.zeros((M, B), like.dtype) + vector(bias, j * B, WIDTH, 1, B, like),)
    return chunks


@triton.jit
def zero_chunks(like, WIDTH: tl.constexpr, M: tl.constexpr, B: tl.constexpr):
    chunks = ()
    for _ in tl.static_range((WIDTH + B - 1) // B):
        chunks = chunks + (tl.zeros((M, B), like.dtype),)
    return chunks


@triton.jit
def add_product(chunks, z, weight, I, IN: tl.constexpr, OUT: tl.constexpr, B: tl.constexpr, P: tl.constexpr):
    """Chunks (M, B) of the outputs plus W z for chunk I of the inputs."""
    sums = ()
    for j in tl.static_range(len(chunks)):
        w = tl.trans(matrix(weight, j * B, I * B, OUT, IN, IN, B, B))
        sums = sums + (tl.dot(z, w, chunks[j], input_precision=P, out_dtype=chunks[j].dtype),)
    return sums


@triton.jit
def times(a, b):
    """a b, rounded before it is summed.

    A compiler that joins it with a lane's first addition rounds the same sum differently from lane to lane.
    """
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def output(
    primal,
    tangent,
    weight,
    bias,
    like,
    WIDTH: tl.constexpr,
    B: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIKE: tl.constexpr = False,
):
    """s and s' from the last hidden layer, (M,); s' is zero if there is no t. ALIKE: equal on all lanes."""
    s, ds = tl.zeros_like(like), tl.zeros_like(like)
    for j in tl.static_range(len(primal)):
        w = vector(weight, j * B, WIDTH, 1, B, like)
        f, d, _ = activate(primal[j], ACTIVATION)
        s += tl.sum(times(f, w) if ALIKE else f * w, 1)
        if len(tangent) > 0:
            u = d * tangent[j]
            ds += tl.sum(times(u, w) if ALIKE else u * w, 1)
    return s + tl.load(bias).to(like.dtype), ds


@triton.jit
def forward(
    c,
    x,
    wave,
    weights,
    biases,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
):
    """(s, s', hidden): (M,), (M,), and chunks (a, t) of every hidden layer, () for the first of several."""
    K: tl.constexpr = len(WIDTHS)
    M: tl.constexpr = TILE[0]
    B: tl.constexpr = TILE[1]
    pair, hidden = (), ()
    if K == 1:
        primal, tangent = (), ()
        for j in tl.static_range((WIDTHS[0] + B - 1) // B):
            a, t = units((), c, x, wave, weights[0], biases[0], 0.0, j, C, E, WIDTHS[0], TILE, P)
            primal, tangent = primal + (a,), tangent + (t,)
        pair = (primal, tangent)
    for k in tl.static_range(1, K):
        hidden = hidden + (pair,)
        primal = bias_chunks(biases[k], x, WIDTHS[k], M, B)
        tangent = zero_chunks(x, WIDTHS[k], M, B)
        if k == 1:
            for i in range((WIDTHS[0] + B - 1) // B):
                a, t = units((), c, x, wave, weights[0], biases[0], 0.0, i, C, E, WIDTHS[0], TILE, P)
                primal, tangent = add_units(
                    primal, tangent, a, t, weights[1], i, WIDTHS[0], WIDTHS[1], B, ACTIVATION, P
                )
        else:
            for i in tl.static_range(len(pair[0])):
                primal, tangent = add_units(
                    primal,
                    tangent,
                    pair[0][i],
                    pair[1][i],
                    weights[k],
                    i,
                    WIDTHS[k - 1],
                    WIDTHS[k],
                    B,
                    ACTIVATION,
                    P,
                )
        pair = (primal, tangent)
    hidden = hidden + (pair,)
    s, ds = output(pair[0], pair[1], weights[K], biases[K], x, WIDTHS[K - 1], B, ACTIVATION)
    return s, ds, hidden
