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
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Tile (R, C) at (ROW, COLUMN) of a row-major matrix, zero from row ROWS and from column END on."""
    r = ROW + tl.arange(0, R)[:, None]
    c = COLUMN + tl.arange(0, C)[None, :]
    if ROW + R <= ROWS and COLUMN + C <= END:
        value = tl.load(pointer + r * STRIDE + c)
    else:
        value = tl.load(pointer + r * STRIDE + c, mask=(r < ROWS) & (c < END), other=0.0)
    return value


@triton.jit
def vector(pointer, FIRST: tl.constexpr, END: tl.constexpr, STRIDE: tl.constexpr, B: tl.constexpr, like):
    """Entries FIRST, FIRST + 1, ... as (1, B) in the dtype of ``like``, zero from END on."""
    i = FIRST + tl.arange(0, B)
    if FIRST + B <= END:
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
def context_layer(
    c,
    like,
    weight,
    bias,
    zero,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """W_c c + b of the first layer for the first C columns of its weight, STRIDE in all; chunks (M, B)."""
    B: tl.constexpr = TILE[1]
    chunks = ()
    for j in tl.static_range((WIDTH + B - 1) // B):
        a = tl.zeros((TILE[0], B), like.dtype) + (vector(bias, j * B, WIDTH, 1, B, like) + zero)
        for i in tl.static_range(len(c)):
            w = matrix(weight, j * B, i * TILE[2], WIDTH, C, STRIDE, B, TILE[2])
            a = tl.dot(c[i], tl.trans(w), a, input_precision=P, out_dtype=a.dtype)
        chunks = chunks + (a,)
    return chunks


@triton.jit
def add_x(
    chunks,
    x,
    wave,
    weight,
    zero,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    TANGENT: tl.constexpr,
    P: tl.constexpr,
):
    """(a, t) from W_c c + b, chunks (M, B); t is (1, B) without frequencies and () if not TANGENT."""
    B: tl.constexpr = TILE[1]
    BE: tl.constexpr = TILE[3]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    primal, tangent = (), ()
    for j in tl.static_range((WIDTH + B - 1) // B):
        wx = vector(weight + C, j * B, WIDTH, STRIDE, B, x) + zero
        a, t = chunks[j] + x[:, None] * wx, wx
        if E > 0:
            w, sin, cos = wave
            ws = tl.trans(matrix(weight, j * B, C + 1, WIDTH, C + 1 + E, STRIDE, B, BE))
            wc = tl.trans(matrix(weight, j * B, C + 1 + E, WIDTH, STRIDE, STRIDE, B, BE))
            a = tl.dot(sin.to(ws.dtype), ws, a, input_precision=P, out_dtype=a.dtype)
            a = tl.dot(cos.to(ws.dtype), wc, a, input_precision=P, out_dtype=a.dtype)
            if TANGENT:
                t = tl.zeros((TILE[0], B), x.dtype) + wx
                t = tl.dot((w * cos).to(ws.dtype), ws, t, input_precision=P, out_dtype=t.dtype)
                t = tl.dot((-w * sin).to(ws.dtype), wc, t, input_precision=P, out_dtype=t.dtype)
        primal = primal + (a,)
        if TANGENT:
            tangent = tangent + (t,)
    return primal, tangent


@triton.jit
def activate_layer(primal, tangent, DTYPE: tl.constexpr, ACTIVATION: tl.constexpr):
    """z = f(a) and u = f'(a) t in DTYPE; u is () if there is no t."""
    zs, us = (), ()
    for j in tl.static_range(len(primal)):
        f, d, _ = activate(primal[j], ACTIVATION)
        zs = zs + (f.to(DTYPE),)
        if len(tangent) > 0:
            us = us + ((d * tangent[j]).to(DTYPE),)
    return zs, us


@triton.jit
def layer(zs, us, weight, bias, like, IN: tl.constexpr, OUT: tl.constexpr, B: tl.constexpr, P: tl.constexpr):
    """a = W z + b and t = W u: chunks (M, B); t is () if u is."""
    primal, tangent = (), ()
    for j in tl.static_range((OUT + B - 1) // B):
        a = tl.zeros((zs[0].shape[0], B), like.dtype)
        t = tl.zeros((zs[0].shape[0], B), like.dtype)
        for i in tl.static_range(len(zs)):
            w = tl.trans(matrix(weight, j * B, i * B, OUT, IN, IN, B, B))
            a = tl.dot(zs[i], w, a, input_precision=P, out_dtype=a.dtype)
            if len(us) > 0:
                t = tl.dot(us[i], w, t, input_precision=P, out_dtype=t.dtype)
        primal = primal + (a + vector(bias, j * B, OUT, 1, B, like),)
        if len(us) > 0:
            tangent = tangent + (t,)
    return primal, tangent


@triton.jit
def output(
    primal, tangent, weight, bias, like, WIDTH: tl.constexpr, B: tl.constexpr, ACTIVATION: tl.constexpr
):
    """s and s' from the last hidden layer, (M,); s' is zero if there is no t."""
    s, ds = tl.zeros_like(like), tl.zeros_like(like)
    for j in tl.static_range(len(primal)):
        w = vector(weight, j * B, WIDTH, 1, B, like)
        f, d, _ = activate(primal[j], ACTIVATION)
        s += tl.sum(f * w, 1)
        if len(tangent) > 0:
            ds += tl.sum(d * tangent[j] * w, 1)
    return s + tl.load(bias).to(like.dtype), ds


@triton.jit
def first_layer(
    c,
    x,
    wave,
    weight,
    bias,
    zero,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """(a, t) of the first hidden layer."""
    base = context_layer(c, x, weight, bias, zero, C, C + 1 + 2 * E, WIDTH, TILE, P)
    return add_x(base, x, wave, weight, zero, C, E, WIDTH, TILE, True, P)


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
    """(s, s', hidden): (M,), (M,) and the pairs (a, t) of every hidden layer."""
    K: tl.constexpr = len(WIDTHS)
    B: tl.constexpr = TILE[1]
    pair = first_layer(c, x, wave, weights[0], biases[0], 0.0, C, E, WIDTHS[0], TILE, P)
    hidden = (pair,)
    for k in tl.static_range(1, K):
        zs, us = activate_layer(pair[0], pair[1], weights[k].dtype.element_ty, ACTIVATION)
        pair = layer(zs, us, weights[k], biases[k], x, WIDTHS[k - 1], WIDTHS[k], B, P)
        hidden = hidden + (pair,)
    s, ds = output(pair[0], pair[1], weights[K], biases[K], x, WIDTHS[K - 1], B, ACTIVATION)
    return s, ds, hidden


@triton.jit
def output_backward(
    primal, tangent, g, p, weight, zero, acc, WIDTH: tl.constexpr, B: tl.constexpr, ACTIVATION: tl.constexpr
):
    """(ga, gt) of the last hidden layer, chunks (M, B); and acc plus the gradients of w_o, (B,), and b_o."""
    gas, gts, sums = (), (), ()
    for j in tl.static_range(len(primal)):
        w = vector(weight, j * B, WIDTH, 1, B, g)
        f, d, e = activate(primal[j] + zero, ACTIVATION)
        gu = p[:, None] * w
        gas = gas + (d * (g[:, None] * w) + e * tangent[j] * gu,)
        gts = gts + (d * gu,)
        if len(acc) > 0:
            sums = sums + (acc[j] + tl.sum(g[:, None] * f + p[:, None] * (d * tangent[j]), 0),)
    if len(acc) > 0:
        sums = sums + (acc[len(primal)] + tl.sum(g, 0),)
    return gas, gts, sums


@triton.jit
def layer_backward(
    gas, gts, weight, like, IN: tl.constexpr, OUT: tl.constexpr, B: tl.constexpr, P: tl.constexpr
):
    """gz = W^T ga and gu = W^T gt, chunks (M, B); ga and gt in the dtype of the weight."""
    gzs, gus = (), ()
    for i in tl.static_range((IN + B - 1) // B):
        gz = tl.zeros((gas[0].shape[0], B), like.dtype)
        gu = tl.zeros((gas[0].shape[0], B), like.dtype)
        for j in tl.static_range(len(gas)):
            w = matrix(weight, j * B, i * B, OUT, IN, IN, B, B)
            gz = tl.dot(gas[j], w, gz, input_precision=P, out_dtype=gz.dtype)
            gu = tl.dot(gts[j], w, gu, input_precision=P, out_dtype=gu.dtype)
        gzs = gzs + (gz,)
        gus = gus + (gu,)
    return gzs, gus


@triton.jit
def activate_backward(primal, tangent, gzs, gus, ACTIVATION: tl.constexpr):
    """ga = f' gz + f'' t gu and gt = f' gu."""
    gas, gts = (), ()
    for i in tl.static_range(len(primal)):
        _, d, e = activate(primal[i], ACTIVATION)
        gas = gas + (d * gzs[i] + e * tangent[i] * gus[i],)
        gts = gts + (d * gus[i],)
    return gas, gts


@triton.jit
def cast_chunks(chunks, DTYPE: tl.constexpr):
    result = ()
    for j in tl.static_range(len(chunks)):
        result = result + (chunks[j].to(DTYPE),)
    return result


@triton.jit
def add_biases(gas, acc, FIRST: tl.constexpr):
    """gb = sum over rows of ga, added to acc[FIRST:], (B,) each."""
    sums = ()
    for j in tl.static_range(len(gas)):
        sums = sums + (acc[FIRST + j] + tl.sum(gas[j], 0),)
    return sums


@triton.jit
def layer_sums(gas, gts, zs, us, acc, like, P: tl.constexpr):
    """gW = ga z^T + gt u^T, added to acc: tiles (B, B) by rows; operands in the dtype of the weight."""
    sums = ()
    for j in tl.static_range(len(gas)):
        ga, gt = tl.trans(gas[j]), tl.trans(gts[j])
        for i in tl.static_range(len(zs)):
            gw = tl.dot(ga, zs[i], acc[j * len(zs) + i], input_precision=P, out_dtype=like.dtype)
            sums = sums + (tl.dot(gt, us[i], gw, input_precision=P, out_dtype=like.dtype),)
    return sums


@triton.jit
def first_sums(gas, gts, c, x, wave, acc, DTYPE: tl.constexpr, E: tl.constexpr, P: tl.constexpr):
    """The first layer's gradients added to acc: for each chunk of x and b, (B,), of c, sin, cos, (B, .)."""
    sums = ()
    for j in tl.static_range(len(gas)):
        sums = sums + (acc[len(sums)] + tl.sum(gas[j] * x[:, None] + gts[j], 0),)
        sums = sums + (acc[len(sums)] + tl.sum(gas[j], 0),)
        ga = tl.trans(gas[j].to(DTYPE))
        for i in tl.static_range(len(c)):
            sums = sums + (tl.dot(ga, c[i], acc[len(sums)], input_precision=P, out_dtype=x.dtype),)
        if E > 0:
            w, sin, cos = wave
            gt = tl.trans(gts[j].to(DTYPE))
            gs = tl.dot(ga, sin.to(DTYPE), acc[len(sums)], input_precision=P, out_dtype=x.dtype)
            gs = tl.dot(gt, (w * cos).to(DTYPE), gs, input_precision=P, out_dtype=x.dtype)
            gc = tl.dot(ga, cos.to(DTYPE), acc[len(sums) + 1], input_precision=P, out_dtype=x.dtype)
            gc = tl.dot(gt, (-w * sin).to(DTYPE), gc, input_precision=P, out_dtype=x.dtype)
            sums = sums + (gs, gc)
    return sums


@triton.jit
def store_grad_context(
    grad_context,
    gas,
    weight,
    rows,
    inside,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """gc = W_c^T ga."""
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    for i in tl.static_range((C + BC - 1) // BC):
        gc = tl.zeros((TILE[0], BC), gas[0].dtype)
        for j in tl.static_range(len(gas)):
            w = matrix(weight, j * B, i * BC, WIDTH, C, C + 1 + 2 * E, B, BC)
            gc = tl.dot(gas[j].to(w.dtype), w, gc, input_precision=P, out_dtype=gc.dtype)
        c = i * BC + tl.arange(0, BC)[None, :]
        place = grad_context + rows[:, None] * C + c
        tl.store(place, gc.to(weight.dtype.element_ty), mask=inside[:, None] & (c < C))


@triton.jit
def grad_of_x(
    gas,
    gts,
    x,
    wave,
    weight,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """gx = sum over the inputs h that depend on x of (W^T ga) dh/dx + (W^T gt) d2h/dx2, (M,)."""
    B: tl.constexpr = TILE[1]
    BE: tl.constexpr = TILE[3]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    gx = tl.zeros_like(x)
    for j in tl.static_range(len(gas)):
        gx += tl.sum(gas[j] * vector(weight + C, j * B, WIDTH, STRIDE, B, x), 1)
        if E > 0:
            w, sin, cos = wave
            ws = matrix(weight, j * B, C + 1, WIDTH, C + 1 + E, STRIDE, B, BE)
            wc = matrix(weight, j * B, C + 1 + E, WIDTH, STRIDE, STRIDE, B, BE)
            ga, gt = gas[j].to(ws.dtype), gts[j].to(ws.dtype)
            zero = tl.zeros((TILE[0], BE), x.dtype)
            sa = tl.dot(ga, ws, zero, input_precision=P, out_dtype=x.dtype)
            ca = tl.dot(ga, wc, zero, input_precision=P, out_dtype=x.dtype)
            st = tl.dot(gt, ws, zero, input_precision=P, out_dtype=x.dtype)
            ct = tl.dot(gt, wc, zero, input_precision=P, out_dtype=x.dtype)
            gx += tl.sum(w * (sa * cos - ca * sin - w * (st * sin + ct * cos)), 1)
    return gx
