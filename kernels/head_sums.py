"""The parameters' gradients that a program of the head sums over its tiles, and how they leave it.

Sums are a tuple with one tuple for each layer: the first, those between hidden units, and the output. They
stay in registers where they fit (RESIDENT); otherwise every tile adds its own to the program's slice of the
partials. A slice holds weights, then biases, each as the parameter lies in memory; OFFSETS says where each
begins.
``reduce_partials_kernel`` adds the slices up in a fixed order.
"""

import triton
import triton.language as tl


@triton.jit
def _put_matrix(
    pointer,
    value,
    ROW,
    COLUMN,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    STRIDE: tl.constexpr,
    ADD: tl.constexpr,
):
    r = ROW + tl.arange(0, value.shape[0])[:, None]
    c = COLUMN + tl.arange(0, value.shape[1])[None, :]
    inside = (r < ROWS) & (c < END)
    if ADD:
        value += tl.load(pointer + r * STRIDE + c, mask=inside, other=0.0)
    tl.store(pointer + r * STRIDE + c, value, mask=inside)


@triton.jit
def _put_vector(pointer, value, FIRST, END: tl.constexpr, STRIDE: tl.constexpr, ADD: tl.constexpr):
    i = FIRST + tl.arange(0, value.shape[0])
    if ADD:
        value += tl.load(pointer + i * STRIDE, mask=i < END, other=0.0)
    tl.store(pointer + i * STRIDE, value, mask=i < END)


@triton.jit
def _zero_first(like, C: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    BE: tl.constexpr = TILE[3]
    sums = ()
    for _ in tl.static_range((WIDTH + TILE[1] - 1) // TILE[1]):
        sums = sums + (tl.zeros((B,), like.dtype), tl.zeros((B,), like.dtype))
        for _ in tl.static_range((C + TILE[2] - 1) // TILE[2]):
            sums = sums + (tl.zeros((B, BC), like.dtype),)
        if E > 0:
            zero = tl.zeros((B, BE), like.dtype)
            sums = sums + (zero, zero)
    return sums


@triton.jit
def _zero_layer(like, IN: tl.constexpr, OUT: tl.constexpr, B: tl.constexpr):
    sums = ()
    for _ in tl.static_range(((OUT + B - 1) // B) * ((IN + B - 1) // B)):
        sums = sums + (tl.zeros((B, B), like.dtype),)
    for _ in tl.static_range((OUT + B - 1) // B):
        sums = sums + (tl.zeros((B,), like.dtype),)
    return sums


@triton.jit
def _zero_output(like, WIDTH: tl.constexpr, B: tl.constexpr):
    sums = ()
    for _ in tl.static_range((WIDTH + B - 1) // B):
        sums = sums + (tl.zeros((B,), like.dtype),)
    return sums + (tl.sum(tl.zeros_like(like), 0),)


@triton.jit
def zero_sums(
    like, LAYER: tl.constexpr, C: tl.constexpr, E: tl.constexpr, WIDTHS: tl.constexpr, TILE: tl.constexpr
):
    """Zeros for the sums of one layer, 0 <= LAYER <= K, in the dtype of ``like`` (M,)."""
    if LAYER == 0:
        sums = _zero_first(like, C, E, WIDTHS[0], TILE)
    elif LAYER == len(WIDTHS):
        sums = _zero_output(like, WIDTHS[LAYER - 1], TILE[1])
    else:
        sums = _zero_layer(like, WIDTHS[LAYER - 1], WIDTHS[LAYER], TILE[1])
    return sums


@triton.jit
def first_chunk_sums(
    ga,
    gt,
    c,
    x,
    wave,
    acc,
    DTYPE: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    TILE: tl.constexpr,
    P: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Gradients of a chunk of the first layer, plus acc if RESIDENT: x and b, (B,), c, sin, cos, (B, .)."""
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    BE: tl.constexpr = TILE[3]
    gw, gb = tl.sum(ga * x[:, None] + gt, 0), tl.sum(ga, 0)
    sums = (gw + acc[0], gb + acc[1]) if RESIDENT else (gw, gb)
    ga = tl.trans(ga.to(DTYPE))
    for i in tl.static_range(len(c)):
        gc = acc[2 + i] if RESIDENT else tl.zeros((B, BC), x.dtype)
        sums = sums + (tl.dot(ga, c[i], gc, input_precision=P, out_dtype=x.dtype),)
    if E > 0:
        w, sin, cos = wave
        gt = tl.trans(gt.to(DTYPE))
        gs = acc[2 + len(c)] if RESIDENT else tl.zeros((B, BE), x.dtype)
        gs = tl.dot(ga, sin.to(DTYPE), gs, input_precision=P, out_dtype=x.dtype)
        gs = tl.dot(gt, (w * cos).to(DTYPE), gs, input_precision=P, out_dtype=x.dtype)
        gc = acc[3 + len(c)] if RESIDENT else tl.zeros((B, BE), x.dtype)
        gc = tl.dot(ga, cos.to(DTYPE), gc, input_precision=P, out_dtype=x.dtype)
        gc = tl.dot(gt, (-w * sin).to(DTYPE), gc, input_precision=P, out_dtype=x.dtype)
        sums = sums + (gs, gc)
    return sums


@triton.jit
def put_first_chunk(
    partial,
    sums,
    J,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    ADD: tl.constexpr,
):
    """The sums of chunk J of the first layer."""
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    WIDTH: tl.constexpr = WIDTHS[0]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    CHUNKS: tl.constexpr = (C + BC - 1) // BC
    weight, bias = partial, partial + OFFSETS[len(WIDTHS) + 1]
    _put_vector(weight + C, sums[0], J * B, WIDTH, STRIDE, ADD)
    _put_vector(bias, sums[1], J * B, WIDTH, 1, ADD)
    for i in tl.static_range(CHUNKS):
        _put_matrix(weight, sums[2 + i], J * B, i * BC, WIDTH, C, STRIDE, ADD)
    if E > 0:
        _put_matrix(weight, sums[2 + CHUNKS], J * B, C + 1, WIDTH, C + 1 + E, STRIDE, ADD)
        _put_matrix(weight, sums[3 + CHUNKS], J * B, C + 1 + E, WIDTH, STRIDE, STRIDE, ADD)


@triton.jit
def put_layer_tile(
    partial,
    value,
    LAYER: tl.constexpr,
    J,
    I,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    ADD: tl.constexpr,
):
    """The sums of the weights from chunk I of one hidden layer to chunk J of the next, LAYER."""
    B: tl.constexpr = TILE[1]
    IN: tl.constexpr = WIDTHS[LAYER - 1]
    _put_matrix(partial + OFFSETS[LAYER], value, J * B, I * B, WIDTHS[LAYER], IN, IN, ADD)


@triton.jit
def put_bias(
    partial,
    value,
    LAYER: tl.constexpr,
    J,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    ADD: tl.constexpr,
):
    """The sums of the biases of chunk J of LAYER."""
    bias = partial + OFFSETS[len(WIDTHS) + 1 + LAYER]
    _put_vector(bias, value, J * TILE[1], WIDTHS[LAYER], 1, ADD)


@triton.jit
def put_output(
    partial, sums, WIDTHS: tl.constexpr, TILE: tl.constexpr, OFFSETS: tl.constexpr, ADD: tl.constexpr
):
    """The sums of the output layer."""
    K: tl.constexpr = len(WIDTHS)
    for j in tl.static_range((WIDTHS[K - 1] + TILE[1] - 1) // TILE[1]):
        _put_vector(partial + OFFSETS[K], sums[j], j * TILE[1], WIDTHS[K - 1], 1, ADD)
    bias = partial + OFFSETS[2 * K + 1]
    value = sums[(WIDTHS[K - 1] + TILE[1] - 1) // TILE[1]]
    if ADD:
        value += tl.load(bias)
    tl.store(bias, value)


@triton.jit
def put_sums(
    partial,
    sums,
    LAYER: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
):
    """Write the sums of one layer to the program's slice of the partials."""
    B: tl.constexpr = TILE[1]
    if LAYER == 0:
        PER: tl.constexpr = 2 + (C + TILE[2] - 1) // TILE[2] + (2 if E > 0 else 0)
        for j in tl.static_range((WIDTHS[0] + B - 1) // B):
            put_first_chunk(partial, sums[j * PER : (j + 1) * PER], j, C, E, WIDTHS, TILE, OFFSETS, False)
    elif LAYER == len(WIDTHS):
        put_output(partial, sums, WIDTHS, TILE, OFFSETS, False)
    else:
        DOWN: tl.constexpr = (WIDTHS[LAYER] + B - 1) // B
        ACROSS: tl.constexpr = (WIDTHS[LAYER - 1] + B - 1) // B
        for j in tl.static_range(DOWN):
            for i in tl.static_range(ACROSS):
                put_layer_tile(partial, sums[i * DOWN + j], LAYER, j, i, WIDTHS, TILE, OFFSETS, False)
            put_bias(partial, sums[ACROSS * DOWN + j], LAYER, j, WIDTHS, TILE, OFFSETS, False)


@triton.jit(do_not_specialize=["programs"])
def reduce_partials_kernel(
    partials, outputs, programs: tl.int32, OFFSETS: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """outputs[k] = the sum of OFFSETS[k] to OFFSETS[k + 1] of every slice, first program first."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for p in range(programs):
        total += tl.load(partials + index.to(tl.int64) + p * STRIDE, mask=index < STRIDE, other=0.0)
    for k in tl.static_range(len(outputs)):
        here = (index >= OFFSETS[k]) & (index < OFFSETS[k + 1])
        tl.store(outputs[k] + index - OFFSETS[k], total.to(outputs[k].dtype.element_ty), mask=here)
