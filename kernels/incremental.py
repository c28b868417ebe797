"""Incremental evaluation of a MADE by the program that owns M samples: each hidden unit once.

Units are sorted by degree: those of one degree follow each other, and read a prefix of the layer below. Their
values lie in memory that only this program touches.
"""

import triton
import triton.language as tl

from .activations import activate


@triton.jit
def prefix_product(
    below,
    inside,
    weight,
    bias,
    order,
    outs,
    there,
    depth,
    like,
    INPUTS: tl.constexpr,
    BK: tl.constexpr,
    GATHER: tl.constexpr,
    P: tl.constexpr,
):
    """W h + b, (M, N), for the rows ``outs`` (N,) of W (., INPUTS) where ``there``, on a prefix of h.

    ``below`` (M, 1) is where each row of h begins; with GATHER input i < depth lies at order[i].
    """
    b = tl.load(bias + outs, mask=there, other=0.0).to(like.dtype)
    acc = tl.zeros((below.shape[0], outs.shape[0]), like.dtype) + b[None, :]
    for first in range(0, depth, BK):
        i = first + tl.arange(0, BK)
        known = i < depth
        column = tl.load(order + i, mask=known, other=0) if GATHER else i
        h = tl.load(below + column[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        place = weight + outs[:, None].to(tl.int64) * INPUTS + column[None, :]
        w = tl.load(place, mask=there[:, None] & known[None, :], other=0.0)
        acc = tl.dot(h, tl.trans(w), acc, input_precision=P, out_dtype=acc.dtype)
    return acc


@triton.jit
def finish_units(
    degree,
    x,
    inside,
    values,
    sums,
    weights,
    biases,
    order,
    due,
    like,
    LAYERS: tl.constexpr,
    BK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    P: tl.constexpr,
):
    """The hidden units of one degree, layer by layer.

    ``values`` (M, 1) is where the rows of all layers' units begin, ``sums`` (M, 1) those of the residual
    stream, which even layers add to. LAYERS is (D, H_1, H_2, ...); due[l, m] units of layer l have a degree
    below m.
    """
    U: tl.constexpr = 16
    below, depth = x, degree
    for l in tl.static_range(len(LAYERS) - 1):
        bounds = due + l * (LAYERS[0] + 2) + degree
        end = tl.load(bounds + 1)
        for first in range(tl.load(bounds), end, U):
            outs = first + tl.arange(0, U)
            there = outs < end
            w, b = weights[l], biases[l]
            a = prefix_product(below, inside, w, b, order, outs, there, depth, like, LAYERS[l], BK, l == 0, P)
            if RESIDUAL and l % 2 == 0:
                if l > 0:
                    a += tl.load(sums + outs[None, :], mask=there[None, :], other=0.0)
                tl.store(sums + outs[None, :], a, mask=there[None, :])
            f, _, _ = activate(a, ACTIVATION)
            tl.store(values + outs[None, :], f.to(values.dtype.element_ty), mask=there[None, :])
        # Other threads of the program read these units next.
        tl.debug_barrier()
        below, depth = values, end
        values += LAYERS[l + 1]


@triton.jit
def contexts(
    variable,
    depth,
    inside,
    values,
    weight,
    bias,
    order,
    like,
    C: tl.constexpr,
    INPUTS: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    P: tl.constexpr,
):
    """The context of a variable, chunks (M, BC), from the first ``depth`` of the last hidden units."""
    chunks = ()
    for i in tl.static_range((C + BC - 1) // BC):
        j = i * BC + tl.arange(0, BC)
        c = prefix_product(
            values, inside, weight, bias, order, variable * C + j, j < C, depth, like, INPUTS, BK, False, P
        )
        chunks = chunks + (c.to(weight.dtype.element_ty),)
    return chunks
