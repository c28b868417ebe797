"""Incremental evaluation of a MADE by the program that owns M samples: each hidden unit once.

Units are sorted by degree: those of one degree follow each other, and read a prefix of the layer below. Their
values lie in memory that only this program touches.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate
from .head import Constants, add_dot, pieces


class _Network(NamedTuple):
    LAYERS: tuple[int, ...]
    UNITS: int
    ACTIVATION: str
    RESIDUAL: bool
    BK: int
    MODELS: int
    SIZES: tuple[tuple[int, ...], ...]
    DENOISE: bool


class Network(Constants, _Network):
    """What is known of a draw when its kernel is compiled.

    LAYERS are the sizes (D, H_1, H_2, ...) of the MADE, whose hidden units are UNITS together; a product goes
    through BK inputs at a time. Of so many MODELS, SIZES are the elements of one's weights and biases, of the
    head and then of the MADE. DENOISE: the last step is to the denoised value.
    """

    __slots__ = ()


class Made(NamedTuple):
    """A MADE's tuples of weights and biases, its variables' order (D,), and the units due (layers, D + 2).

    due[l, m] units of layer l have a degree below m. Programs keep the units of their rows in ``units``, and
    the sums of the residual stream in ``sums``.
    """

    weights: Any
    biases: Any
    order: Any
    due: Any
    units: Any
    sums: Any


@triton.jit
def of_model(pointers, m, PART: tl.constexpr, N: tl.constexpr):
    """Where the tensors of model m begin, those of all models lying in a row; N.SIZES[PART] are theirs."""
    moved = ()
    for k in tl.static_range(len(pointers)):
        moved = moved + (pointers[k] + m * tl.full([], N.SIZES[PART][k], tl.int64),)
    return moved


@triton.jit
def network_of(made, m, N: tl.constexpr, S: tl.constexpr):
    """The MADE of model m, with where this program's rows of units and sums begin, (M, 1)."""
    w, b = of_model(made.weights, m, 2, N), of_model(made.biases, m, 3, N)
    rows = (tl.program_id(0).to(tl.int64) * N.MODELS + m) * S.M + tl.arange(0, S.M)[:, None]
    return Made(w, b, made.order, made.due, made.units + rows * N.UNITS, made.sums + rows * N.LAYERS[1])


@triton.jit
def prefix_product(
    below, inside, made, l: tl.constexpr, outs, there, depth, like, N: tl.constexpr, S: tl.constexpr
):
    """W h + b, (M, .), for the rows ``outs`` of layer l's W where ``there``, on a prefix of h.

    ``below`` (M, 1) is where each row of h begins; input i < depth of the first layer lies at order[i].
    """
    b = tl.load(made.biases[l] + outs, mask=there, other=0.0).to(like.dtype)
    acc = tl.zeros((below.shape[0], outs.shape[0]), like.dtype) + b[None, :]
    for first in range(0, depth, N.BK):
        i = first + tl.arange(0, N.BK)
        known = i < depth
        column = tl.load(made.order + i, mask=known, other=0) if l == 0 else i
        h = tl.load(below + column[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        place = made.weights[l] + outs[:, None].to(tl.int64) * N.LAYERS[l] + column[None, :]
        w = tl.load(place, mask=there[:, None] & known[None, :], other=0.0)
        acc = add_dot(h, tl.trans(w), acc, S)
    return acc


@triton.jit
def finish_units(degree, x, inside, made, like, N: tl.constexpr, S: tl.constexpr):
    """The hidden units of one degree, layer by layer; even layers add to the sums of the residual stream."""
    U: tl.constexpr = 16
    below, depth, values = x, degree, made.units
    for l in tl.static_range(len(N.LAYERS) - 1):
        bounds = made.due + l * (N.LAYERS[0] + 2) + degree
        end = tl.load(bounds + 1)
        for first in range(tl.load(bounds), end, U):
            outs = first + tl.arange(0, U)
            there = outs < end
            a = prefix_product(below, inside, made, l, outs, there, depth, like, N, S)
            if N.RESIDUAL and l % 2 == 0:
                if l > 0:
                    a += tl.load(made.sums + outs[None, :], mask=there[None, :], other=0.0)
                tl.store(made.sums + outs[None, :], a, mask=there[None, :])
            f, _, _ = activate(a, N.ACTIVATION)
            tl.store(values + outs[None, :], f.to(values.dtype.element_ty), mask=there[None, :])
        # Other threads of the program read these units next.
        tl.debug_barrier()
        below, depth = values, end
        values += N.LAYERS[l + 1]


@triton.jit
def contexts(variable, place, inside, made, like, N: tl.constexpr, S: tl.constexpr):
    """The context of a variable at ``place`` of the order, chunks (M, BC), from the last layer's units."""
    L: tl.constexpr = len(N.LAYERS) - 1
    depth = tl.load(made.due + (L - 1) * (N.LAYERS[0] + 2) + place + 1)
    values = made.units + (N.UNITS - N.LAYERS[L])
    chunks = ()
    for i in tl.static_range(pieces(S.GIVEN, S.BC)):
        j = i * S.BC + tl.arange(0, S.BC)
        c = prefix_product(values, inside, made, L, variable * S.GIVEN + j, j < S.GIVEN, depth, like, N, S)
        chunks = chunks + (c.to(made.weights[L].dtype.element_ty),)
    return chunks
