"""The parameters' gradients that a program of the head sums over its tiles, and how they leave it.

Sums are a tuple with one tuple for each layer: the first, those between hidden units, and the output; see
``first_sums``, ``layer_sums`` and ``output_backward``. They stay in registers where they fit (RESIDENT);
otherwise every tile adds its own to the program's slice of the partials. A slice holds weights, then biases,
each as the parameter lies in memory; OFFSETS is where each begins. ``reduce_partials_kernel`` adds the slices
up in a fixed order.
"""

import triton
import triton.language as tl


@triton.jit
def _put_matrix(
    pointer,
    value,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
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
def _put_vector(
    pointer, value, FIRST: tl.constexpr, END: tl.constexpr, STRIDE: tl.constexpr, ADD: tl.constexpr
):
    i = FIRST + tl.arange(0, value.shape[0])
    if ADD:
        value += tl.load(pointer + i * STRIDE, mask=i < END, other=0.0)
    tl.store(pointer + i * STRIDE, value, mask=i < END)


@triton.jit
def _zero_first(like, C: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    sums = ()
    for _ in tl.static_range((WIDTH + TILE[1] - 1) // TILE[1]):
        sums = sums + (tl.zeros((TILE[1],), like.dtype), tl.zeros((TILE[1],), like.dtype))
        for _ in tl.static_range((C + TILE[2] - 1) // TILE[2]):
            sums = sums + (tl.zeros((TILE[1], TILE[2]), like.dtype),)
        if E > 0:
            zero = tl.zeros((TILE[1], TILE[3]), like.dtype)
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
def _put_first(
    weight,
    bias,
    sums,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ADD: tl.constexpr,
):
    B: tl.constexpr = TILE[1]
    BC: tl.constexpr = TILE[2]
    STRIDE: tl.constexpr = C + 1 + 2 * E
    CHUNKS: tl.constexpr = (C + BC - 1) // BC
    PER: tl.constexpr = 2 + CHUNKS + (2 if E > 0 else 0)
    for j in tl.static_range((WIDTH + B - 1) // B):
        _put_vector(weight + C, sums[j * PER], j * B, WIDTH, STRIDE, ADD)
        _put_vector(bias, sums[j * PER + 1], j * B, WIDTH, 1, ADD)
        for i in tl.static_range(CHUNKS):
            _put_matrix(weight, sums[j * PER + 2 + i], j * B, i * BC, WIDTH, C, STRIDE, ADD)
        if E > 0:
            _put_matrix(weight, sums[j * PER + 2 + CHUNKS], j * B, C + 1, WIDTH, C + 1 + E, STRIDE, ADD)
            _put_matrix(weight, sums[j * PER + 3 + CHUNKS], j * B, C + 1 + E, WIDTH, STRIDE, STRIDE, ADD)


@triton.jit
def _put_layer(weight, bias, sums, IN: tl.constexpr, OUT: tl.constexpr, B: tl.constexpr, ADD: tl.constexpr):
    ACROSS: tl.constexpr = (IN + B - 1) // B
    DOWN: tl.constexpr = (OUT + B - 1) // B
    for j in tl.static_range(DOWN):
        for i in tl.static_range(ACROSS):
            _put_matrix(weight, sums[j * ACROSS + i], j * B, i * B, OUT, IN, IN, ADD)
        _put_vector(bias, sums[DOWN * ACROSS + j], j * B, OUT, 1, ADD)


@triton.jit
def _put_output(weight, bias, sums, WIDTH: tl.constexpr, B: tl.constexpr, ADD: tl.constexpr):
    for j in tl.static_range((WIDTH + B - 1) // B):
        _put_vector(weight, sums[j], j * B, WIDTH, 1, ADD)
    value = sums[(WIDTH + B - 1) // B]
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
    ADD: tl.constexpr,
):
    """Write, or with ADD add, the sums of one layer to the program's slice of the partials."""
    K: tl.constexpr = len(WIDTHS)
    weight, bias = partial + OFFSETS[LAYER], partial + OFFSETS[K + 1 + LAYER]
    if LAYER == 0:
        _put_first(weight, bias, sums, C, E, WIDTHS[0], TILE, ADD)
    elif LAYER == K:
        _put_output(weight, bias, sums, WIDTHS[K - 1], TILE[1], ADD)
    else:
        _put_layer(weight, bias, sums, WIDTHS[LAYER - 1], WIDTHS[LAYER], TILE[1], ADD)


@triton.jit
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
