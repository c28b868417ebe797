"""Philox4x32-10 and the noise rule of ``fastcsm.random`` inside kernels; integers agree bit for bit."""

import triton
import triton.language as tl

from .circle import cos_of_turns


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words for each counter; all arguments uint32, of shapes that broadcast together."""
    a: tl.constexpr = 0xD2511F53
    b: tl.constexpr = 0xCD9E8D57
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * tl.full([], a, tl.uint64)
        p1 = c2.to(tl.uint64) * tl.full([], b, tl.uint64)
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = k0 + tl.full([], 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full([], 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def noise_words(seed, samples, dimensions, step, STREAM: tl.constexpr):
    """Words 0 and 1 of the block at counter (step, dimension, sample) under the seed, all int64."""
    high = (samples >> 32).to(tl.uint32) | tl.full([], STREAM << 16, tl.uint32)
    words = philox4x32(
        (samples * 0 + step).to(tl.uint32),
        dimensions.to(tl.uint32),
        samples.to(tl.uint32),
        high,
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )
    return words[0], words[1]


@triton.jit
def normal(seed, samples, dimensions, step, DTYPE: tl.constexpr):
    """Standard normal draws, by Box-Muller on words 0 and 1; see ``fastcsm.random.normal``.

    z = sqrt(-2 ln u1) cos(2 pi u2),  u1 = max(float32(w0), 1/2) 2^-32,  u2 = (w1 div 2^8) 2^-24
    """
    w0, w1 = noise_words(seed, samples, dimensions, step, 0)
    u1 = (tl.maximum(w0.to(tl.float32), 0.5) * 2.3283064365386963e-10).to(DTYPE)
    u2 = ((w1 >> 8).to(tl.float32) * 5.960464477539063e-08).to(DTYPE)
    return tl.sqrt(-2.0 * tl.log(u1)) * cos_of_turns(u2)
