"""The reverse pass of a tile of rows: gradients of its inputs stored, those of the parameters summed.

The first of several layers is computed again, chunk by chunk, where keeping it would not fit in registers;
its chunks are a loop of the program, as a compiler that sees them unrolled interleaves them and spills.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate
from .head import (
    Constants,
    add_dot,
    apart,
    first_units,
    matrix,
    pieces,
    read_context,
    times,
    vector,
    wave_weights,
    waves,
)
from .head_sums import add_bias, add_first, add_layer, add_output


class Tile(NamedTuple):
    """M rows: the first's number and theirs from there, which of them exist, contexts, x (M,), and waves.

    ``zero`` is a 0 that the compiler does not know to be one. Added to what was computed before, it has that
    computed again; added to an address, it has that computed for each tile, not kept in registers for all.
    """

    first: Any
    row: Any
    inside: Any
    c: Any
    x: Any
    wave: Any
    zero: Any


class Gradients(NamedTuple):
    """Where gradients of context and x go, and a program's slice of the partials, empty while begun is 0."""

    context: Any
    x: Any
    partial: Any
    begun: Any


class _Need(NamedTuple):
    CONTEXT: bool
    X: bool
    PARAMS: bool
    OFFSETS: tuple[int, ...]


class Need(Constants, _Need):
    """Which gradients are needed, and where those of each parameter begin in a slice; then where they end."""

    __slots__ = ()


@triton.jit
def read_tile(t, context, x, rows, head, COMPUTE: tl.constexpr, S: tl.constexpr):
    """Tile t of the rows."""
    # Only a stride of two is promised: longer stores of sums would have them change threads.
    zero = tl.multiple_of((rows - t * S.M) >> 63, 2)
    first = (t | zero) * S.M
    row = tl.arange(0, S.M)
    inside = row < tl.minimum(rows - first, S.M).to(tl.int32)
    v = tl.load(x + first + row, mask=inside, other=0.0).to(COMPUTE)
    c = read_context(context + first * S.GIVEN + row * S.GIVEN, inside, S)
    return Tile(first, row, inside, c, v, waves(v, head, S), zero)


@triton.jit
def places(gradients, partial, tile, t):
    """Where the gradients of tile t go, of context and x and in the program's slice of the partials."""
    begun = tl.minimum(t - tl.program_id(0), 1)
    return Gradients(gradients.grad_context, gradients.grad_x, partial + tile.zero, begun)


@triton.jit
def output_backward(kept, g, p, head, out, NEED: tl.constexpr, S: tl.constexpr):
    """(ga, gt) of the last hidden layer, chunks (B, M), from what :func:`output` kept of it."""
    gas, gts = (), ()
    for j in tl.static_range(len(kept)):
        f, d, e, pu = kept[j]
        w = vector(head.weights[S.K], j * S.B, S.WIDTHS[S.K - 1], 1, S.B, g)[:, None]
        gu = p[None, :] * w
        gas = gas + (d * (g[None, :] * w) + e * gu,)
        gts = gts + (d * gu,)
        if NEED.PARAMS:
            add_output(out, tl.sum(g[None, :] * f, 1) + pu, j, NEED.OFFSETS, S)
    if NEED.PARAMS:
        place = out.partial + NEED.OFFSETS[2 * S.K + 1]
        total = tl.sum(g, 0) + tl.load(place, mask=out.begun > 0, other=0.0)
        tl.debug_barrier()
        tl.store(place, total)
    return gas, gts


@triton.jit
def cast_chunks(chunks, DTYPE: tl.constexpr):
    result = ()
    for j in tl.static_range(len(chunks)):
        result = result + (chunks[j].to(DTYPE),)
    return result


@triton.jit
def chunk_backward(tile, a, t, gas, gts, I, head, k: tl.constexpr, S: tl.constexpr):
    """(ga, gt) of chunk I, (a, t), of the hidden layer below layer k, and (z, u) for the weights."""
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    B: tl.constexpr = a.shape[0]
    f, d, e = activate(a + tile.zero.to(a.dtype), S.ACTIVATION)
    gz, gu = tl.zeros_like(f), tl.zeros_like(f)
    for j in tl.static_range(len(gas)):
        w = matrix(head.weights[k], j * S.B, I * B, S.WIDTHS[k], S.WIDTHS[k - 1], S.WIDTHS[k - 1], S.B, B)
        gz, gu = add_dot(tl.trans(w), gas[j], gz, S), add_dot(tl.trans(w), gts[j], gu, S)
    return d * gz + e * t * gu, d * gu, f.to(STORE), (d * t).to(STORE)


@triton.jit
def weights_backward(gas, gts, z, u, I, out, k: tl.constexpr, NEED: tl.constexpr, S: tl.constexpr):
    """Adds the gradients of the weights from chunk I below to layer k: ga z^T + gt u^T."""
    COMPUTE: tl.constexpr = out.partial.dtype.element_ty
    B: tl.constexpr = z.shape[0]
    for j in tl.static_range(len(gas)):
        gw = add_dot(gas[j], tl.trans(z), tl.zeros((S.B, B), COMPUTE), S)
        gw = add_dot(gts[j], tl.trans(u), gw, S)
        add_layer(out, gw, j, I, k, NEED.OFFSETS, S)


@triton.jit
def first_backward(tile, ga, gt, gcs, gx, J, head, out, NEED: tl.constexpr, S: tl.constexpr):
    """What follows from chunk J of the first layer's (ga, gt): gcs and gx plus its part of them.

    gc = W_c^T ga, chunks (M, BC), and gx = sum over the inputs h that depend on x of
    (W^T ga) dh/dx + (W^T gt) d2h/dx2, (M,).
    """
    B: tl.constexpr = ga.shape[0]
    if NEED.PARAMS:
        add_first(out, ga, gt, tile, J, head, NEED.OFFSETS, S)
    if NEED.CONTEXT:
        sums = ()
        for i in tl.static_range(len(gcs)):
            w = matrix(head.weights[0], J * B, i * S.BC, S.WIDTHS[0], S.C, S.STRIDE, B, S.BC)
            sums = sums + (add_dot(tl.trans(ga.to(w.dtype)), w, gcs[i], S),)
        gcs = sums
    if NEED.X:
        gx += tl.sum(ga * vector(head.weights[0] + S.C, J * B, S.WIDTHS[0], S.STRIDE, B, gx)[:, None], 0)
        if S.E > 0:
            w, sin, cos = tile.wave
            weights = wave_weights(head, J, B, S)
            none = tl.zeros((S.M, 2 * S.BE), gx.dtype)
            sa, ca = apart(add_dot(tl.trans(ga.to(weights.dtype)), weights, none, S))
            st, ct = apart(add_dot(tl.trans(gt.to(weights.dtype)), weights, none, S))
            slope = sa * cos - ca * sin - w * (st * sin + ct * cos)
            gx += tl.sum(times(slope, w), 1)
    return gcs, gx


@triton.jit
def again_backward(tile, gas, gts, gcs, gx, J, head, out, NEED: tl.constexpr, S: tl.constexpr):
    """What follows from the second layer's (ga, gt) for chunk J of the first, computed again: gcs and gx."""
    a, t = first_units(tile.c, tile.x, tile.wave, head, tile.zero, J, S.BI, S)
    ga, gt, z, u = chunk_backward(tile, a, t, gas, gts, J, head, 1, S)
    gcs, gx = first_backward(tile, ga, gt, gcs, gx, J, head, out, NEED, S)
    if NEED.PARAMS:
        weights_backward(gas, gts, z, u, J, out, 1, NEED, S)
    return gcs, gx


@triton.jit
def backward(tile, hidden, kept, g, p, head, out, NEED: tl.constexpr, S: tl.constexpr):
    """Gradients for upstream g = dL/ds and p = dL/ds', (M,).

    gz = W^T ga, gu = W^T gt below each layer, then ga = f' gz + f'' t gu, gt = f' gu; gW = ga z^T + gt u^T.
    """
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    gcs = ()
    for _ in tl.static_range(pieces(S.C, S.BC)):
        gcs = gcs + (tl.zeros((S.M, S.BC), g.dtype),)
    gx = tl.zeros_like(g)
    gas, gts = output_backward(kept, g, p, head, out, NEED, S)
    if S.K == 1:
        for j in tl.static_range(len(gas)):
            gcs, gx = first_backward(tile, gas[j], gts[j], gcs, gx, j, head, out, NEED, S)
    for k in tl.static_range(S.K - 1, 0, -1):
        if NEED.PARAMS:
            for j in tl.static_range(len(gas)):
                add_bias(out, tl.sum(gas[j], 1), j, k, NEED.OFFSETS, S)
        gas, gts = cast_chunks(gas, STORE), cast_chunks(gts, STORE)
        if k == 1:
            for i in range(pieces(S.WIDTHS[0], S.BI)):
                gcs, gx = again_backward(tile, gas, gts, gcs, gx, i, head, out, NEED, S)
        else:
            below_a, below_t = (), ()
            for i in tl.static_range(len(hidden[k - 1][0])):
                a, t = hidden[k - 1][0][i], hidden[k - 1][1][i]
                ga, gt, z, u = chunk_backward(tile, a, t, gas, gts, i, head, k, S)
                if NEED.PARAMS:
                    weights_backward(gas, gts, z, u, i, out, k, NEED, S)
                below_a, below_t = below_a + (ga,), below_t + (gt,)
            gas, gts = below_a, below_t

    if NEED.CONTEXT:
        for i in tl.static_range(len(gcs)):
            column = i * S.BC + tl.arange(0, S.BC)[None, :]
            place = out.context + tile.first * S.C + (tile.row[:, None] * S.C + column)
            tl.store(place, gcs[i].to(STORE), mask=tile.inside[:, None] & (column < S.C))
    if NEED.X:
        tl.store(out.x + tile.first + tile.row, gx.to(STORE), mask=tile.inside)
