// Preconditioned heads (fastcsm/reference/preconditioning.py): for v the head reads u = u0 asinh(v / u0), and with its
// output r the score of v is rho r - v, rho = tau / sigma being one over the row's own level.
#pragma once

#include "cuda/device.h"

namespace fastcsm {

// asinh(t): of products of float32 as exact as float32, else to 2^-16 of its value by the special function units.
template <Precision P>
FASTCSM_INLINE float asinh_of(float t) {
  if constexpr (P == Precision::exact) {
    return asinhf(t);
  } else {
    const float a = fabsf(t), square = t * t, q = 1 + square;
    const float root = a < 1e9f ? q * fast_reciprocal_root(q) : a;
    const float large = copysignf(0.693147181f * fast_log2(a + root), t);
    return a < 0.25f ? fmaf(t * square, fmaf(0.075f, square, -1.f / 6), t) : large;
  }
}

// What the head reads for v, and its derivative in v.
struct Input {
  float u, derivative;
};
template <Precision P>
FASTCSM_INLINE Input squashed(double v, double squash) {
  if constexpr (P == Precision::exact) {
    const double t = v / squash;
    return {float(squash * asinh(t)), float(1 / sqrt(fma(t, t, 1.)))};
  } else {
    const float u0 = float(squash), t = float(v) * fast_reciprocal(u0);
    return {u0 * asinh_of<P>(t), fast_reciprocal_root(fmaf(t, t, 1.f))};
  }
}

}  // namespace fastcsm
