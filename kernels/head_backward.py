"""The reverse pass of a tile of rows: gradients of its inputs stored, those of the parameters summed.

``zero`` is a 0 that the compiler does not know to be one: added to what was computed before, it has the first
layer and the activations computed again, where keeping them would not fit in registers. The chunks of the
first of several layers are a loop of the program: unrolled, the compiler interleaves them and spills.
"""

import triton
import triton.language as tl

from .activations import activate
from .head import matrix, units, vector
from .head_sums import first_chunk_sums, put_bias, put_first_chunk, put_layer_tile, put_output


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
def cast_chunks(chunks, DTYPE: tl.constexpr):
    result = ()
    for j in tl.static_range(len(chunks)):
        result = result + (chunks[j].to(DTYPE),)
    return result


@triton.jit
def product_backward(
    chunks,
    weight,
    like,
    I,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    B: tl.constexpr,
    P: tl.constexpr,
):
    """Chunk I of W^T g for chunks g (M, B) in the dtype of the weight."""
    gz = tl.zeros((chunks[0].shape[0], B), like.dtype)
    for j in tl.static_range(len(chunks)):
        w = matrix(weight, j * B, I * B, OUT, IN, IN, B, B)
        gz = tl.dot(chunks[j], w, gz, input_precision=P, out_dtype=gz.dtype)
    return gz


@triton.jit
def inputs_backward(
    ga,
    gt,
    x,
    wave,
    weight,
    gcs,
    gx,
    J,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
    NEED_CONTEXT: tl.constexpr,
    NEED_X: tl.constexpr,
):
    """Gradients of the inputs plus those by chunk J of the first layer.

    gc = W_c^T ga, chunks (M, BC), and gx = sum over the inputs h that depend on x of
    (W^T ga) dh/dx + (W^T gt) d2h/dx2, (M,).
    """
    M: tl.constexpr = TILE[0]
    B: tl.constexpr = TILE[1]
    BE: tl.constexpr = TILE[3]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    sums = ()
    if NEED_CONTEXT:
        for i in tl.static_range(len(gcs)):
            w = matrix(weight, J * B, i * TILE[2], WIDTH, C, STRIDE, B, TILE[2])
            sums = sums + (tl.dot(ga.to(w.dtype), w, gcs[i], input_precision=P, out_dtype=gx.dtype),)
    if NEED_X:
        gx += tl.sum(ga * vector(weight + C, J * B, WIDTH, STRIDE, B, x), 1)
        if E > 0:
            w, sin, cos = wave
            ws = matrix(weight + C + 1, J * B, 0, WIDTH, E, STRIDE, B, BE)
            wc = matrix(weight + C + 1 + E, J * B, 0, WIDTH, E, STRIDE, B, BE)
            la, lt = ga.to(ws.dtype), gt.to(ws.dtype)
            none = tl.zeros((M, BE), x.dtype)
            sa = tl.dot(la, ws, none, input_precision=P, out_dtype=x.dtype)
            ca = tl.dot(la, wc, none, input_precision=P, out_dtype=x.dtype)
            st = tl.dot(lt, ws, none, input_precision=P, out_dtype=x.dtype)
            ct = tl.dot(lt, wc, none, input_precision=P, out_dtype=x.dtype)
            gx += tl.sum(w * (sa * cos - ca * sin - w * (st * sin + ct * cos)), 1)
    return sums, gx


@triton.jit
def first_backward(
    ga,
    gt,
    c,
    x,
    wave,
    weight,
    partial,
    acc,
    gcs,
    gx,
    J,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    P: tl.constexpr,
    NEED_CONTEXT: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """All that follows from chunk J of the first layer's (ga, gt): (gcs, gx, its sums if RESIDENT)."""
    sums = ()
    if NEED_PARAMS:
        sums = first_chunk_sums(ga, gt, c, x, wave, acc, weight.dtype.element_ty, C, E, TILE, P, RESIDENT)
        if not RESIDENT:
            put_first_chunk(partial, sums, J, C, E, WIDTHS, TILE, OFFSETS, True)
            sums = ()
    gcs, gx = inputs_backward(
        ga, gt, x, wave, weight, gcs, gx, J, C, E, WIDTHS[0], TILE, P, NEED_CONTEXT, NEED_X
    )
    return gcs, gx, sums


@triton.jit
def chunk_backward(
    pair,
    c,
    x,
    wave,
    zero,
    gas,
    gts,
    weights,
    biases,
    partial,
    acc,
    I,
    K: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    P: tl.constexpr,
    NEED_PARAMS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """(ga, gt) of chunk I of the units below layer K, (M, B); and acc plus the gradients of its weights."""
    B: tl.constexpr = TILE[1]
    STORE: tl.constexpr = weights[0].dtype.element_ty
    a, t = units(pair, c, x, wave, weights[0], biases[0], zero, I, C, E, WIDTHS[0], TILE, P)
    f, d, e = activate(a + zero, ACTIVATION)
    after = ()
    if NEED_PARAMS:
        z, u = f.to(STORE), (d * t).to(STORE)
        for j in tl.static_range(len(gas)):
            gw = acc[j] if RESIDENT else tl.zeros((B, B), x.dtype)
            gw = tl.dot(tl.trans(gas[j]), z, gw, input_precision=P, out_dtype=x.dtype)
            gw = tl.dot(tl.trans(gts[j]), u, gw, input_precision=P, out_dtype=x.dtype)
            if RESIDENT:
                after = after + (gw,)
            else:
                put_layer_tile(partial, gw, K, j, I, WIDTHS, TILE, OFFSETS, True)
    gz = product_backward(gas, weights[K], x, I, WIDTHS[K - 1], WIDTHS[K], B, P)
    gu = product_backward(gts, weights[K], x, I, WIDTHS[K - 1], WIDTHS[K], B, P)
    return d * gz + e * t * gu, d * gu, after


@triton.jit
def backward(
    c,
    x,
    wave,
    hidden,
    g,
    p,
    zero,
    weights,
    biases,
    sums,
    partial,
    grad_context,
    grad_x,
    rows,
    inside,
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
    """Gradients for upstream g = dL/ds and p = dL/ds', (M,).

    gz = W^T ga, gu = W^T gt below each layer, then ga = f' gz + f'' t gu, gt = f' gu; gW = ga z^T + gt u^T.

    Returns the sums to carry to the next tile, () unless RESIDENT.
    """
    K: tl.constexpr = len(WIDTHS)
    M: tl.constexpr = TILE[0]
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    # Sums of a chunk of the first layer.
    PER: tl.constexpr = 2 + (C + BC - 1) // BC + (2 if E > 0 else 0)
    STORE: tl.constexpr = weights[0].dtype.element_ty
    gcs = ()
    for _ in tl.static_range((C + BC - 1) // BC):
        gcs = gcs + (tl.zeros((M, BC), x.dtype),)
    gx = tl.zeros_like(x)

    before = ()
    if RESIDENT:
        before = sums[K]
    elif NEED_PARAMS:
        for _ in tl.static_range(len(hidden[K - 1][0])):
            before = before + (tl.zeros((B,), x.dtype),)
        before = before + (tl.sum(gx, 0),)
    gas, gts, after = output_backward(
        hidden[K - 1][0], hidden[K - 1][1], g, p, weights[K], zero, before, WIDTHS[K - 1], B, ACTIVATION
    )
    carried = ()
    if RESIDENT:
        carried = (after,)
    elif NEED_PARAMS:
        put_output(partial, after, WIDTHS, TILE, OFFSETS, True)

    first = ()
    if K == 1:
        for j in tl.static_range(len(gas)):
            gcs, gx, more = first_backward(
                gas[j],
                gts[j],
                c,
                x,
                wave,
                weights[0],
                partial,
                sums[0][j * PER : (j + 1) * PER] if RESIDENT else (),
                gcs,
                gx,
                j,
                C,
                E,
                WIDTHS,
                TILE,
                OFFSETS,
                P,
                NEED_CONTEXT,
                NEED_X,
                NEED_PARAMS,
                RESIDENT,
            )
            first = first + more
    for k in tl.static_range(K - 1, 0, -1):
        in_biases = ()
        if NEED_PARAMS:
            for j in tl.static_range(len(gas)):
                total = tl.sum(gas[j], 0)
                if RESIDENT:
                    in_biases = in_biases + (sums[k][len(sums[k]) - len(gas) + j] + total,)
                else:
                    put_bias(partial, total, k, j, WIDTHS, TILE, OFFSETS, True)
        gas, gts = cast_chunks(gas, STORE), cast_chunks(gts, STORE)
        below_a, below_t, after = (), (), ()
        if k == 1 and not RESIDENT:
            for i in range((WIDTHS[0] + B - 1) // B):
                ga, gt, _none = chunk_backward(
                    (),
                    c,
                    x,
                    wave,
                    zero,
                    gas,
                    gts,
                    weights,
                    biases,
                    partial,
                    (),
                    i,
                    1,
                    C,
                    E,
                    WIDTHS,
                    TILE,
                    OFFSETS,
                    ACTIVATION,
                    P,
                    NEED_PARAMS,
                    RESIDENT,
                )
                gcs, gx, _none = first_backward(
                    ga,
                    gt,
                    c,
                    x,
                    wave,
                    weights[0],
                    partial,
                    (),
                    gcs,
                    gx,
                    i,
                    C,
                    E,
                    WIDTHS,
                    TILE,
                    OFFSETS,
                    P,
                    NEED_CONTEXT,
                    NEED_X,
                    NEED_PARAMS,
                    RESIDENT,
                )
        else:
            for i in tl.static_range((WIDTHS[k - 1] + B - 1) // B):
                ga, gt, more = chunk_backward(
                    hidden[k - 1],
                    c,
                    x,
                    wave,
                    zero,
                    gas,
                    gts,
                    weights,
                    biases,
                    partial,
                    sums[k][i * len(gas) : (i + 1) * len(gas)] if RESIDENT else (),
                    i,
                    k,
                    C,
                    E,
                    WIDTHS,
                    TILE,
                    OFFSETS,
                    ACTIVATION,
                    P,
                    NEED_PARAMS,
                    RESIDENT,
                )
                after = after + more
                if k == 1:
                    gcs, gx, more = first_backward(
                        ga,
                        gt,
                        c,
                        x,
                        wave,
                        weights[0],
                        partial,
                        sums[0][i * PER : (i + 1) * PER] if RESIDENT else (),
                        gcs,
                        gx,
                        i,
                        C,
                        E,
                        WIDTHS,
                        TILE,
                        OFFSETS,
                        P,
                        NEED_CONTEXT,
                        NEED_X,
                        NEED_PARAMS,
                        RESIDENT,
                    )
                    first = first + more
                else:
                    below_a, below_t = below_a + (ga,), below_t + (gt,)
        if RESIDENT:
            carried = (after + in_biases,) + carried
        gas, gts = below_a, below_t
    if RESIDENT:
        carried = (first,) + carried

    if NEED_CONTEXT:
        for i in tl.static_range(len(gcs)):
            column = i * BC + tl.arange(0, BC)[None, :]
            place = grad_context + rows[:, None] * C + column
            tl.store(place, gcs[i].to(STORE), mask=inside[:, None] & (column < C))
    if NEED_X:
        tl.store(grad_x + rows, gx.to(STORE), mask=inside)
    if NEED_PARAMS and not RESIDENT:
        tl.debug_barrier()
    return carried
