"""The reverse pass of a tile of rows: gradients of its inputs written out, those of the parameters summed."""

import triton
import triton.language as tl

from .head import (
    activate_backward,
    activate_layer,
    add_biases,
    cast_chunks,
    first_layer,
    first_sums,
    grad_of_x,
    layer_backward,
    layer_sums,
    output_backward,
    store_grad_context,
)
from .head_sums import put_sums, zero_sums


@triton.jit
def _settle(
    sums,
    partial,
    LAYER: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """The sums of one layer to carry on, in a tuple; none once they are added to the partials."""
    if RESIDENT:
        kept = (sums,)
    else:
        put_sums(partial, sums, LAYER, C, E, WIDTHS, TILE, OFFSETS, True)
        kept = ()
    return kept


@triton.jit
def _sums_before(
    sums,
    like,
    LAYER: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    WIDTHS: tl.constexpr,
    TILE: tl.constexpr,
    NEED_PARAMS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    if RESIDENT:
        before = sums[LAYER]
    elif NEED_PARAMS:
        before = zero_sums(like, LAYER, C, E, WIDTHS, TILE)
    else:
        before = ()
    return before


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
    """Gradients for upstream g = dL/ds and p = dL/ds', (M,): of context and x stored, of parameters summed.

    ``zero`` is a 0 that the compiler does not know to be one: added to what was computed before, it has the
    activations computed again, where keeping them would not fit in registers.

    Returns the sums to carry to the next tile, () unless RESIDENT.
    """
    K: tl.constexpr = len(WIDTHS)
    B: tl.constexpr = TILE[1]
    STORE: tl.constexpr = weights[0].dtype.element_ty
    before = _sums_before(sums, x, K, C, E, WIDTHS, TILE, NEED_PARAMS, RESIDENT)
    gas, gts, after = output_backward(
        hidden[K - 1][0], hidden[K - 1][1], g, p, weights[K], zero, before, WIDTHS[K - 1], B, ACTIVATION
    )
    carried = ()
    if NEED_PARAMS:
        carried = _settle(after, partial, K, C, E, WIDTHS, TILE, OFFSETS, RESIDENT)
    for k in tl.static_range(K - 1, 0, -1):
        before = _sums_before(sums, x, k, C, E, WIDTHS, TILE, NEED_PARAMS, RESIDENT)
        in_biases = ()
        if NEED_PARAMS:
            in_biases = add_biases(gas, before, len(before) - len(gas))
        gas, gts = cast_chunks(gas, STORE), cast_chunks(gts, STORE)
        if NEED_PARAMS:
            pair = hidden[k - 1]
            if k == 1:
                pair = first_layer(c, x, wave, weights[0], biases[0], zero, C, E, WIDTHS[0], TILE, P)
            zs, us = activate_layer(pair[0], pair[1], STORE, ACTIVATION)
            after = layer_sums(gas, gts, zs, us, before, x, P) + in_biases
            carried = _settle(after, partial, k, C, E, WIDTHS, TILE, OFFSETS, RESIDENT) + carried
        gzs, gus = layer_backward(gas, gts, weights[k], x, WIDTHS[k - 1], WIDTHS[k], B, P)
        pair = hidden[k - 1]
        if k == 1:
            pair = first_layer(c, x, wave, weights[0], biases[0], 2 * zero, C, E, WIDTHS[0], TILE, P)
        gas, gts = activate_backward(pair[0], pair[1], gzs, gus, ACTIVATION)
    if NEED_PARAMS:
        before = _sums_before(sums, x, 0, C, E, WIDTHS, TILE, NEED_PARAMS, RESIDENT)
        after = first_sums(gas, gts, c, x, wave, before, STORE, E, P)
        carried = _settle(after, partial, 0, C, E, WIDTHS, TILE, OFFSETS, RESIDENT) + carried
    if NEED_CONTEXT:
        store_grad_context(grad_context, gas, weights[0], rows, inside, C, E, WIDTHS[0], TILE, P)
    if NEED_X:
        gx = grad_of_x(gas, gts, x, wave, weights[0], C, E, WIDTHS[0], TILE, P)
        tl.store(grad_x + rows, gx.to(STORE), mask=inside)
    if NEED_PARAMS and not RESIDENT:
        tl.debug_barrier()
    return carried
