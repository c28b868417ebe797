"""What a preconditioned head reads, and what its outputs are multiplied by.

The formulas are those of ``fastcsm.reference.preconditioning``. Products read the context features but the
last, in the place of which the first layer has the row's own level, ln(sigma / tau).
"""

import triton
import triton.language as tl

from .activations import twice_atanh


@triton.jit
def _hypot1(t):
    """sqrt(1 + t^2), at most 1 + |t|, which it is where the square overflows."""
    return tl.minimum(tl.sqrt(1.0 + t * t), 1.0 + tl.abs(t))


@triton.jit
def _asinh(t, root):
    """asinh(t) for root = sqrt(1 + t^2): a logarithm, and where that cancels a series."""
    log = tl.log(tl.abs(t) + root)
    if t.dtype == tl.float64:
        near = twice_atanh(t / (1.0 + root))  # tanh(y / 2) = sinh y / (1 + cosh y)
    else:
        tt = t * t
        series = 0.0046129385 * tt - 0.015213898
        series = series * tt + 0.028061667
        series = series * tt - 0.044231605
        series = series * tt + 0.07496425
        series = series * tt - 0.16666548
        near = t * (series * tt + 1.0)
    return tl.where(tl.abs(t) > 0.75, tl.where(t < 0, -log, log), near)


@triton.jit
def squashed(v, squash):
    """u and du / dv, in the dtype of v, float32 or float64."""
    t = v * (1.0 / squash)
    root = _hypot1(t)
    return squash * _asinh(t, root), 1.0 / root


@triton.jit
def kappa_and_rho(own):
    """1 / sqrt(1 + own^2) and 1 / own, of rows' own levels sigma / tau."""
    return 1.0 / _hypot1(own), 1.0 / own
