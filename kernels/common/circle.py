"""Sine and cosine without branches: a compiler puts the slow path of its own at every element.

Float32 by polynomials on an eighth of a turn, to an ulp or two; float64, which only the interpreter runs,
by the library.
"""

import triton
import triton.language as tl


@triton.jit
def _of_quadrants(r, n):
    """Sine and cosine of n quarters of a turn and r more, |r| <= pi / 4."""
    r = tl.minimum(tl.maximum(r, -0.7854), 0.7854)  # farther where n has no digits left for it
    rr = r * r
    p = -1.9515295891e-4 * rr + 8.3321608736e-3
    p = p * rr - 1.6666654611e-1
    p = p * (rr * r) + r
    q = 2.443315711809948e-5 * rr - 1.388731625493765e-3
    q = q * rr + 4.166664568298827e-2
    q = q * (rr * rr) + (1.0 - 0.5 * rr)
    quarter = n.to(tl.int32)
    odd = (quarter & 1) != 0
    sin, cos = tl.where(odd, q, p), tl.where(odd, p, q)
    sin = tl.where((quarter & 2) != 0, -sin, sin)
    return sin, tl.where(((quarter + 1) & 2) != 0, -cos, cos)


@triton.jit
def sin_cos(x):
    """sin x and cos x."""
    if x.dtype == tl.float64:
        sin, cos = tl.sin(x), tl.cos(x)
    else:
        n = tl.floor(x * 0.6366197723675814 + 0.5)
        # pi / 2 in three parts, of which two are so short that products with them are exact.
        r = tl.fma(n, tl.full(n.shape, -1.5703125, tl.float32), x)
        r = tl.fma(n, tl.full(n.shape, -4.837512969970703125e-4, tl.float32), r)
        r = tl.fma(n, tl.full(n.shape, -7.549790126404332e-08, tl.float32), r)
        sin, cos = _of_quadrants(r, n)
    return sin, cos


@triton.jit
def cos_of_turns(u):
    """cos(2 pi u) for 0 <= u < 1."""
    if u.dtype == tl.float64:
        cos = tl.cos(6.283185307179586 * u)
    else:
        n = tl.floor(4.0 * u + 0.5)
        _, cos = _of_quadrants((4.0 * u - n) * 1.5707963267948966, n)
    return cos
