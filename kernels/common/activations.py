"""f, f' and f'' of every activation, on tensors of float32 or float64: the table of ``fastcsm.activations``.

No term overflows: exponentials are only taken of arguments <= 0, or of arguments clamped where the result is
exact.
"""

import triton
import triton.language as tl


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, by its series where that would cancel."""
    wide: tl.constexpr = x.dtype == tl.float64
    terms: tl.constexpr = 17 if wide else 9
    y = tl.maximum(x, -0.6)
    series = tl.full(x.shape, 1.0, x.dtype)
    for n in tl.static_range(terms, 1, -1):
        series = 1.0 + y * series * (1.0 / n)
    return tl.where(x > -0.6, y * series, tl.exp(x) - 1.0)


@triton.jit
def twice_atanh(y):
    """2 atanh(y) for |y| <= 1/3, in float64."""
    yy = y * y
    series = tl.full(y.shape, 2.0 / 35, y.dtype)
    for n in tl.static_range(16, -1, -1):
        series = series * yy + 2.0 / (2 * n + 1)
    return y * series


@triton.jit
def _log1p(q):
    """log(1 + q) for 0 <= q <= 1: q times a polynomial in float32, 2 atanh(q / (q + 2)) in float64."""
    if q.dtype == tl.float64:
        result = twice_atanh(q / (q + 2.0))
    else:
        series = 0.0199071609 - 0.00325637847 * q
        series = series * q - 0.0570642008
        series = series * q + 0.106142647
        series = series * q - 0.153118631
        series = series * q + 0.196781173
        series = series * q - 0.249545589
        series = series * q + 0.33330004
        series = series * q - 0.49999904
        result = q * (series * q + 0.999999995)
    return result


@triton.jit
def _reciprocal(y):
    """1 / y for 1 <= y <= 2: a root, its square, and Newton's step, half of what a division takes."""
    if y.dtype == tl.float64:
        r = 1.0 / y
    else:
        r = tl.rsqrt(y)
        r = r * r
        r = tl.fma(r, tl.fma(-y, r, tl.full(y.shape, 1.0, y.dtype)), r)
    return r


@triton.jit
def _sigmoids(x):
    """sigma(x) and 1 - sigma(x), neither by subtraction."""
    e = tl.exp(-tl.abs(x))
    r = _reciprocal(1.0 + e)
    er = e * r
    positive = x >= 0
    return tl.where(positive, r, er), tl.where(positive, er, r)


@triton.jit
def _gelu_inner(x):
    """y, sigma(q), 1 - sigma(q), q', q'' in gelu(x) = x sigma(q(x)); y is x, clamped where that is 0 or x."""
    k: tl.constexpr = 1.5957691216057308
    c: tl.constexpr = 0.044715
    y = tl.where(x > 12.0, 12.0, tl.where(x < -12.0, -12.0, x))
    yy = y * y
    p, q = _sigmoids(k * y * (1.0 + c * yy))
    return y, p, q, k * (1.0 + 3.0 * c * yy), (6.0 * k * c) * y


@triton.jit
def activate(x, NAME: tl.constexpr):
    """f, f' and f'' of x; what the caller does not use costs nothing."""
    if NAME == "softplus":
        q = tl.exp(-tl.abs(x))
        r = _reciprocal(1.0 + q)
        qr = q * r
        f = tl.where(x <= 0, 0.0, x) + _log1p(q)
        d = tl.where(x <= 0, qr, r)
        e = r * qr
    elif NAME == "tanh":
        y = -2.0 * tl.abs(x)
        q = tl.exp(y)
        r = _reciprocal(1.0 + q)
        t = _expm1(y) * r
        f = tl.where(x < 0, t, -t)
        d = 4.0 * (q * r) * r
        e = -2.0 * f * d
    elif NAME == "silu":
        p, q = _sigmoids(x)
        xq = x * q
        f = x * p
        d = p * (1.0 + xq)
        e = p * q * (2.0 + x * (q - p))
    elif NAME == "gelu":
        y, p, q, u1, u2 = _gelu_inner(x)
        pq = p * q
        f = x * p
        d = p + y * pq * u1
        e = pq * (2.0 * u1 + y * (u2 + (q - p) * u1 * u1))
    elif NAME == "elu":
        y = tl.where(x > 0, 0.0, x)
        d = tl.exp(y)
        f = tl.where(x > 0, x, _expm1(y))
        e = tl.where(x >= 0, 0.0, d)
    elif NAME == "relu":
        f = tl.where(x <= 0, 0.0, x)
        d = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
        e = tl.zeros_like(x)
    elif NAME == "sigmoid":
        p, q = _sigmoids(x)
        f = p
        d = p * q
        e = d * (q - p)
    else:
        tl.static_assert(NAME == "identity", "unknown activation")
        f = x
        d = tl.full(x.shape, 1.0, x.dtype)
        e = tl.zeros_like(x)
    return f, d, e
