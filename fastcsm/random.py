"""Philox4x32-10 and the project's noise rule: the specification every backend reproduces.

A draw is a pure function of (seed, sample, dimension, step), so a seed means the same noise whatever the
backend, the batch split or the number of threads.

    key     = (seed mod 2^32, seed div 2^32)                       seed as an unsigned 64-bit integer
    counter = (step, dimension, sample mod 2^32, sample div 2^32 + stream * 2^16)
    stream  = 0 for normals, 1 for uniforms

Philox: J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

import math
import operator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["normal", "philox4x32", "uniform"]

Words = TypeVar("Words", Tensor, np.ndarray)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NORMAL, _UNIFORM = 0, 1


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int], rounds: int = 10
) -> tuple[Words, Words, Words, Words]:
    """Four random 32-bit words for each counter.

    Args:
        counter: four arrays of one kind that broadcast together, with entries in [0, 2^32): torch.int64
            tensors on any device, or NumPy uint64 arrays.
        key: two integers in [0, 2^32).
        rounds: number of rounds; 10 is the standard generator.

    Returns:
        Four arrays of the counter's kind with entries in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # 64-bit products wrap: the low 64 bits are right whether or not the integers carry a sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(
    seed: int, samples: Tensor, dimensions: Tensor, step: int, stream: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples, dimensions = torch.broadcast_tensors(samples.long(), dimensions.long())
    seed = operator.index(seed)  # integers of fixed width would overflow
    counter = (
        torch.full_like(samples, step & _MASK),
        dimensions & _MASK,
        samples & _MASK,
        ((samples >> 32) & _MASK) | (stream << 16),
    )
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def normal(
    seed: int, samples: Tensor, dimensions: Tensor, step: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal draws, by Box-Muller on the first two words w0, w1 of the counter.

        u1 = max(float32(w0), 1/2) 2^-32,    u2 = (w1 div 2^8) 2^-24,    z = sqrt(-2 ln u1) cos(2 pi u2)

    Args:
        seed: integer, read modulo 2^64.
        samples, dimensions: integer tensors that broadcast together; samples in [0, 2^48), dimensions in
            [0, 2^32).
        step: integer in [0, 2^32). Step 0 is the prior draw, Langevin steps count from 1.
        dtype: dtype of the result; the formula is evaluated in it, or in float32 for 16-bit dtypes.

    Returns:
        Tensor of the broadcast shape on the device of ``samples``. |z| is at most 6.77.
    """
    w0, w1, _, _ = _words(seed, samples, dimensions, step, _NORMAL)
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    u1 = (w0.to(torch.float32).clamp(min=0.5) * 2.0**-32).to(wide)
    u2 = ((w1 >> 8).to(torch.float32) * 2.0**-24).to(wide)
    return ((-2 * u1.log()).sqrt() * (2 * math.pi * u2).cos()).to(dtype)


def uniform(
    seed: int, samples: Tensor, dimensions: Tensor, step: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform draws in (0, 1): u = (w0 div 2^9 + 1/2) 2^-23, which float32 holds exactly.

    Arguments and result as for :func:`normal`. Of a 16-bit dtype the largest is its last number below 1; a
    quantile is better taken of a float32.
    """
    w0, _, _, _ = _words(seed, samples, dimensions, step, _UNIFORM)
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    u = ((w0 >> 9).to(wide) + 0.5) * 2.0**-23
    return u if wide is dtype else u.to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2)
