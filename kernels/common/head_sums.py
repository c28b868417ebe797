"""The parameters' gradients that a program of the head sums over its tiles.

They lie in the program's slice of the partials, weights and then biases, each as the parameter lies in
memory. Every tile adds its own; the first of a program finds nothing there and only writes.
``reduce_partials_kernel`` adds the slices up in a fixed order.
"""

import triton
import triton.language as tl

from .head import add_dot, wave_inputs, wave_places


@triton.jit
def _add_matrix(
    out,
    value,
    row,
    column,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """A tile at (row, column) of the matrix at OFFSET, which ends at row ROWS and column END."""
    r = row + tl.arange(0, value.shape[0])[:, None]
    c = column + tl.arange(0, value.shape[1])[None, :]
    place = out.partial + OFFSET + r * STRIDE + c
    value += tl.load(place, mask=(r < ROWS * out.begun) & (c < END), other=0.0)
    tl.store(place, value, mask=(r < ROWS) & (c < END))


@triton.jit
def _add_vector(out, value, first, OFFSET: tl.constexpr, END: tl.constexpr, STRIDE: tl.constexpr):
    i = first + tl.arange(0, value.shape[0])
    place = out.partial + OFFSET + i * STRIDE
    value += tl.load(place, mask=i < END * out.begun, other=0.0)
    tl.debug_barrier()  # several threads have read what one of them writes
    tl.store(place, value, mask=i < END)


@triton.jit
def add_first(out, ga, gt, tile, J, head, OFFSETS: tl.constexpr, S: tl.constexpr):
    """The gradients of chunk J of the first layer from its (ga, gt), (B, M)."""
    B: tl.constexpr = ga.shape[0]
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    _add_vector(out, tl.sum(ga * tile.x[None, :] + gt, 1), J * B, S.C, S.WIDTHS[0], S.STRIDE)
    _add_vector(out, tl.sum(ga, 1), J * B, OFFSETS[S.K + 1], S.WIDTHS[0], 1)
    ga = ga.to(STORE)
    for i in tl.static_range(len(tile.c)):
        gc = add_dot(ga, tile.c[i], tl.zeros((B, S.BC), tile.x.dtype), S)
        _add_matrix(out, gc, J * B, i * S.BC, 0, S.WIDTHS[0], S.C, S.STRIDE)
    if S.E > 0:
        v, d = wave_inputs(tile.wave, STORE)
        gw = add_dot(ga, v, tl.zeros((B, 2 * S.BE), tile.x.dtype), S)
        gw = add_dot(gt.to(STORE), d, gw, S)
        place, inside = wave_places(J, B, S)
        begun = inside & (place < S.WIDTHS[0] * S.STRIDE * out.begun)
        gw += tl.load(out.partial + place, mask=begun, other=0.0)
        tl.store(out.partial + place, gw, mask=inside)


@triton.jit
def add_layer(out, value, J, I, k: tl.constexpr, OFFSETS: tl.constexpr, S: tl.constexpr):
    """Those of the weights from chunk I of the hidden layer below to chunk J of layer k, (B, .)."""
    IN: tl.constexpr = S.WIDTHS[k - 1]
    _add_matrix(out, value, J * S.B, I * value.shape[1], OFFSETS[k], S.WIDTHS[k], IN, IN)


@triton.jit
def add_bias(out, value, J, k: tl.constexpr, OFFSETS: tl.constexpr, S: tl.constexpr):
    """Those of the biases of chunk J of layer k, (B,)."""
    _add_vector(out, value, J * S.B, OFFSETS[S.K + 1 + k], S.WIDTHS[k], 1)


@triton.jit
def add_output(out, value, J, OFFSETS: tl.constexpr, S: tl.constexpr):
    """Those of the weights from chunk J to the output, (B,)."""
    _add_vector(out, value, J * S.B, OFFSETS[S.K], S.WIDTHS[S.K - 1], 1)


@triton.jit(do_not_specialize=["programs"])
def reduce_partials_kernel(
    partials, outputs, programs: tl.int32, OFFSETS: tl.constexpr, SIZES: tl.constexpr, BLOCK: tl.constexpr
):
    """outputs[k] = the sum of SIZES[k] numbers from OFFSETS[k] on of every slice, first program first."""
    STRIDE: tl.constexpr = OFFSETS[-1]
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for p in range(programs):
        total += tl.load(partials + index.to(tl.int64) + p * STRIDE, mask=index < STRIDE, other=0.0)
    for k in tl.static_range(len(outputs)):
        place = index - OFFSETS[k]
        here = (place >= 0) & (place < SIZES[k])
        tl.store(outputs[k] + place, total.to(outputs[k].dtype.element_ty), mask=here)
