"""A score head on one tile of M rows, forward: what every kernel of the head shares.

Hidden units are tuples of chunks (B, M), a unit a row, so that any width fits and warps share the units of
few rows; units past a layer's width are zero rows of its weights. Primal and tangent meet the same weight
tile. Sums are in the dtype of x, float32 or float64, and operands of products in that of the weights. The
equations are those of ``fastcsm.reference.score_head``.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate
from .circle import sin_cos

INTERPRETED = triton.knobs.runtime.interpret


@triton.constexpr_function
def pieces(n, size):
    """How many pieces of ``size`` cover n."""
    return -(-n // size)


@triton.constexpr_function
def whole(n, size):
    """Whether pieces of ``size`` cover n without anything left over."""
    return n % size == 0


class Head(NamedTuple):
    """The parameters of a head: tuples of weights and biases, and the frequencies (E,)."""

    weights: Any
    biases: Any
    frequencies: Any


class Constants:
    """A NamedTuple of constants, whose fields Triton 3.6 would take for plain numbers that it cannot add."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return tl.constexpr(value) if name.isupper() and not INTERPRETED else value


class _Spec(NamedTuple):
    C: int
    GIVEN: int
    ROW: int
    E: int
    WIDTHS: tuple[int, ...]
    ACTIVATION: str
    P: str
    M: int
    B: int
    BI: int
    BC: int
    BE: int
    K: int
    STRIDE: int
    HELD: bool
    PRECONDITIONED: bool


class Spec(Constants, _Spec):
    """What is known of a head when its kernel is compiled.

    C and E are its context features, of which products read the first GIVEN from rows of ROW in memory, and
    its frequencies; WIDTHS its K hidden layers, STRIDE the columns of its first weight; P is the precision of
    products. A tile has M rows, chunks of B hidden units, of BI first units where they are not kept, and of
    BC context features; BE are the frequencies padded. HELD: weights stay in shared memory for all steps of a
    chain. Of a head that is PRECONDITIONED, a row ends with -ln(tau).
    """

    __slots__ = ()


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
    if whole(ROWS, R) and whole(END, C):
        value = tl.load(pointer + r * STRIDE + c)
    else:
        value = tl.load(pointer + r * STRIDE + c, mask=(r < ROWS) & (c < END), other=0.0)
    return value


@triton.jit
def vector(pointer, first, END: tl.constexpr, STRIDE: tl.constexpr, B: tl.constexpr, like):
    """Entries first, first + 1, ... as (B,) in the dtype of ``like``, zero from END on; B divides first."""
    i = first + tl.arange(0, B)
    if whole(END, B):
        value = tl.load(pointer + i * STRIDE)
    else:
        value = tl.load(pointer + i * STRIDE, mask=i < END, other=0.0)
    return value.to(like.dtype)


@triton.jit
def read_context(rows, inside, S: tl.constexpr):
    """The contexts at pointers (M,) as chunks (M, BC), zero outside."""
    chunks = ()
    for i in tl.static_range(pieces(S.GIVEN, S.BC)):
        c = i * S.BC + tl.arange(0, S.BC)[None, :]
        chunks = chunks + (tl.load(rows[:, None] + c, mask=inside[:, None] & (c < S.GIVEN), other=0.0),)
    return chunks


@triton.jit
def waves(x, head, S: tl.constexpr):
    """(w, sin(w x), cos(w x)): (1, BE) and twice (M, BE); () without frequencies."""
    if S.E > 0:
        w = vector(head.frequencies, 0, S.E, 1, S.BE, x)[None, :]
        sin, cos = sin_cos(x[:, None] * w)
        result = (w, sin, cos)
    else:
        result = ()
    return result


@triton.jit
def add_dot(a, b, acc, S: tl.constexpr):
    """acc + a b."""
    return tl.dot(a, b, acc, input_precision=S.P, out_dtype=acc.dtype)


@triton.jit
def times(a, b):
    """a b, rounded before it is summed.

    A compiler that joins it with a lane's first addition rounds the same sum differently from lane to lane.
    """
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def beside(a, b):
    """[a, b] of two (M, BE), which one product reads."""
    return tl.reshape(tl.trans(tl.join(a, b), 0, 2, 1), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def apart(both):
    """The halves of what was put beside each other."""
    M: tl.constexpr = both.shape[0]
    return tl.split(tl.trans(tl.reshape(both, (M, 2, both.shape[1] // 2)), 0, 2, 1))


@triton.jit
def wave_inputs(wave, DTYPE: tl.constexpr):
    """What the first layer reads of the waves and their derivatives in x, (M, 2 BE) each."""
    w, sin, cos = wave
    return beside(sin, cos).to(DTYPE), beside(w * cos, -w * sin).to(DTYPE)


@triton.jit
def wave_places(J, B: tl.constexpr, S: tl.constexpr):
    """Of the first layer's weights, those for chunk J by which it reads waves: places and which exist."""
    r = J * B + tl.arange(0, B)[:, None]
    k = tl.arange(0, 2 * S.BE)[None, :]
    inside = (r < S.WIDTHS[0]) & (k % S.BE < S.E)
    return S.C + 1 + r * S.STRIDE + k + k // S.BE * (S.E - S.BE), inside


@triton.jit
def wave_weights(head, J, B: tl.constexpr, S: tl.constexpr):
    """What chunk J of the first layer reads sines and cosines by, (B, 2 BE)."""
    place, inside = wave_places(J, B, S)
    return tl.load(head.weights[0] + place, mask=inside, other=0.0)


@triton.jit
def first_units(c, x, wave, head, zero, J, B: tl.constexpr, S: tl.constexpr):
    """Chunk J of the first layer, (a, t); t is (B, 1) without frequencies. ``zero`` is that of a Tile."""
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    a = tl.zeros((B, S.M), x.dtype) + vector(head.biases[0] + zero, J * B, S.WIDTHS[0], 1, B, x)[:, None]
    for i in tl.static_range(len(c)):
        w = matrix(head.weights[0], J * B, i * S.BC, S.WIDTHS[0], S.C, S.STRIDE, B, S.BC)
        a = add_dot(w, tl.trans(c[i]), a, S)
    t = vector(head.weights[0] + S.C + zero, J * B, S.WIDTHS[0], S.STRIDE, B, x)[:, None]
    a += x[None, :] * t
    if S.E > 0:
        w = wave_weights(head, J, B, S)
        v, d = wave_inputs(wave, STORE)
        a = add_dot(w, tl.trans(v), a, S)
        t = add_dot(w, tl.trans(d), tl.zeros((B, S.M), x.dtype) + t, S)
    return a, t


@triton.jit
def add_units(primal, tangent, a, t, I, head, k: tl.constexpr, S: tl.constexpr):
    """Chunks (primal, tangent) of layer k plus what chunk I of the one below, (a, t), adds to them."""
    STORE: tl.constexpr = head.weights[0].dtype.element_ty
    B: tl.constexpr = a.shape[0]
    f, d, _ = activate(a, S.ACTIVATION)
    z, u = f.to(STORE), (d * t).to(STORE)
    zs, us = (), ()
    for j in tl.static_range(len(primal)):
        w = matrix(head.weights[k], j * S.B, I * B, S.WIDTHS[k], S.WIDTHS[k - 1], S.WIDTHS[k - 1], S.B, B)
        zs, us = zs + (add_dot(w, z, primal[j], S),), us + (add_dot(w, u, tangent[j], S),)
    return zs, us


@triton.jit
def layers(c, x, wave, head, S: tl.constexpr):
    """Chunks (a, t) of every hidden layer, () for the first of several."""
    primal, tangent = (), ()
    if S.K == 1:
        for j in tl.static_range(pieces(S.WIDTHS[0], S.B)):
            a, t = first_units(c, x, wave, head, 0, j, S.B, S)
            primal, tangent = primal + (a,), tangent + (t,)
    hidden = ((primal, tangent),)
    for k in tl.static_range(1, S.K):
        primal, tangent = (), ()
        for j in tl.static_range(pieces(S.WIDTHS[k], S.B)):
            zero = tl.zeros((S.B, S.M), x.dtype)
            bias = vector(head.biases[k], j * S.B, S.WIDTHS[k], 1, S.B, x)
            primal, tangent = primal + (zero + bias[:, None],), tangent + (zero,)
        if k == 1:
            for i in range(pieces(S.WIDTHS[0], S.BI)):
                a, t = first_units(c, x, wave, head, 0, i, S.BI, S)
                primal, tangent = add_units(primal, tangent, a, t, i, head, 1, S)
        else:
            below = hidden[k - 1]
            for i in tl.static_range(len(below[0])):
                primal, tangent = add_units(primal, tangent, below[0][i], below[1][i], i, head, k, S)
        hidden = hidden + ((primal, tangent),)
    return hidden


@triton.jit
def output(last, x, p, head, S: tl.constexpr):
    """(s, s', kept) of the last hidden layer, chunks (a, t).

    s and s' are (M,); kept are of each chunk f, f' and f'' t, (B, M), and the sum of p f' t, (B,).
    """
    s, ds, kept = tl.zeros_like(x), tl.zeros_like(x), ()
    for j in tl.static_range(len(last[0])):
        w = vector(head.weights[S.K], j * S.B, S.WIDTHS[S.K - 1], 1, S.B, x)[:, None]
        f, d, e = activate(last[0][j], S.ACTIVATION)
        u = d * last[1][j]
        s += tl.sum(f * w, 0)
        ds += tl.sum(u * w, 0)
        kept = kept + ((f, d, e * last[1][j], tl.sum(p[None, :] * u, 1)),)
    return s + tl.load(head.biases[S.K]).to(x.dtype), ds, kept
