// The activations of common/activations.h on a thread's float, chosen by a switch that all threads take alike, and the
// sine and cosine of the frequencies.
#pragma once

#include "cuda/device.h"

namespace fastcsm {

FASTCSM_INLINE float exp_(float x) { return expf(x); }
FASTCSM_INLINE float expm1_(float x) { return expm1f(x); }
FASTCSM_INLINE float abs_(float x) { return fabsf(x); }
FASTCSM_INLINE float select_(bool mask, float a, float b) { return mask ? a : b; }

// 2 atanh(s) for |s| <= 1/3.
FASTCSM_INLINE float twice_atanh_(float s) {
  const float v = s * s;
  const float p = fmaf(fmaf(fmaf(0.1401222827f, v, 0.1399957371f), v, 0.2001084906f), v, 0.3333320658f);
  return fmaf(2.f * s * v, p, 2.f * s);
}

// A float whose quotients are products with the special function units' reciprocal, to 2 units in the last place. Under
// kFastExp they make its exponentials and logarithms too, to some more, and under kFastTanh the sigmoid is made from
// their hyperbolic tangent, of 11 bits: for values that products round to fewer.
template <bool kFastExp, bool kFastTanh = false>
struct Approximate {
  using A = Approximate;
  float v;
  Approximate() = default;
  FASTCSM_INLINE explicit Approximate(float value) : v(value) {}

  friend FASTCSM_INLINE A operator-(A x) { return A(-x.v); }
  friend FASTCSM_INLINE A operator+(A x, A y) { return A(x.v + y.v); }
  friend FASTCSM_INLINE A operator-(A x, A y) { return A(x.v - y.v); }
  friend FASTCSM_INLINE A operator*(A x, A y) { return A(x.v * y.v); }
  friend FASTCSM_INLINE A operator/(A x, A y) { return A(x.v * fast_reciprocal(y.v)); }
  friend FASTCSM_INLINE bool operator<(A x, A y) { return x.v < y.v; }
  friend FASTCSM_INLINE bool operator>(A x, A y) { return x.v > y.v; }
  friend FASTCSM_INLINE bool operator<=(A x, A y) { return x.v <= y.v; }
  friend FASTCSM_INLINE bool operator>=(A x, A y) { return x.v >= y.v; }
  friend FASTCSM_INLINE A exp_(A x) { return A(kFastExp ? fast_exp2(x.v * 1.44269504f) : expf(x.v)); }
  friend FASTCSM_INLINE A expm1_(A x) { return A(kFastExp ? fast_exp2(x.v * 1.44269504f) - 1.f : expm1f(x.v)); }
  friend FASTCSM_INLINE A abs_(A x) { return A(fabsf(x.v)); }
  friend FASTCSM_INLINE A select_(bool mask, A x, A y) { return mask ? x : y; }
  friend FASTCSM_INLINE A twice_atanh_(A s) { return A(fastcsm::twice_atanh_(s.v)); }
  friend FASTCSM_INLINE void sigmoids(A x, A& p, A& q)
    requires kFastExp
  {
    if constexpr (kFastTanh) {
      const float t = fast_tanh(0.5f * x.v);
      p = A(fmaf(0.5f, t, 0.5f)), q = A(fmaf(-0.5f, t, 0.5f));
    } else {
      p = A(fast_reciprocal(1.f + fast_exp2(x.v * -1.44269504f))), q = A(1.f - p.v);
    }
  }
  // Two results of the special function units each, which would be three: 1 / (1 + e) from a cubic and a step of
  // Newton's, to 3e-6.
  friend FASTCSM_INLINE void softplus_terms(A y, A& p, A& q, A& log)
    requires kFastExp
  {
    if constexpr (kFastTanh) {
      sigmoids(y, p, q);
      log = A(-0.693147181f * fast_log2(p.v));
    } else {
      const float e = fast_exp2(y.v * -1.44269504f), sum = 1.f + e;
      const float r = fmaf(fmaf(fmaf(-0.22183721f, e, 0.66551165f), e, -0.94280792f), e, 0.99826695f);
      p = A(r * fmaf(-sum, r, 2.f)), q = A(e * p.v);
      log = A(0.693147181f * fast_log2(sum));
    }
  }
};

// A float of which products of precision P are made.
template <Precision P>
using Value = Approximate<P != Precision::exact, P == Precision::bf16>;

#include "common/activations.h"

// f(x) alone, for a product of precision P to read.
template <Precision P, int kCode>
FASTCSM_INLINE float activation_value(float x) {
  Value<P> f, d, e;
  activate<kCode>(Value<P>(x), f, d, e);
  return f.v;
}

template <int kCode>
struct ActivationCode {
  static constexpr int value = kCode;
};

// Calls function(ActivationCode<activation>), so that the loops inside it are compiled for each activation.
template <class Function>
FASTCSM_INLINE void with_activation(int activation, const Function& function) {
  switch (activation) {
    case kSoftplus:
      return function(ActivationCode<kSoftplus>());
    case kTanh:
      return function(ActivationCode<kTanh>());
    case kSilu:
      return function(ActivationCode<kSilu>());
    case kGelu:
      return function(ActivationCode<kGelu>());
    case kElu:
      return function(ActivationCode<kElu>());
    case kRelu:
      return function(ActivationCode<kRelu>());
    default:
      return function(ActivationCode<kSigmoid>());
  }
}

// sin(w x) and cos(w x). The phase is counted in half turns, whose remainder is exact, and carries what rounding took
// from w x and from its division by pi.
FASTCSM_INLINE void wave(float w, float x, float& sine, float& cosine) {
  constexpr float kInversePi = 0.318309886f, kRest = 1.28412766e-8f, kPi = 3.14159265f;  // 1/pi = the first two
  const float phase = w * x, lost = fmaf(w, x, -phase);
  const float turns = phase * kInversePi;
  const float rest = fmaf(phase, kRest, fmaf(lost, kInversePi, fmaf(phase, kInversePi, -turns))) * kPi;
  float s, c;
  sincospif(turns, &s, &c);
  sine = fmaf(rest, c, s);
  cosine = fmaf(-rest, s, c);
}

// The same for products of precision P to read.
template <Precision P>
FASTCSM_INLINE void wave(float w, float x, float& sine, float& cosine) {
  if constexpr (P == Precision::exact) {
    wave(w, x, sine, cosine);
  } else {
    const float turns = w * x * 0.159154943f, angle = (turns - rintf(turns)) * 6.28318531f;
    sine = fast_sin(angle), cosine = fast_cos(angle);
  }
}

}  // namespace fastcsm
