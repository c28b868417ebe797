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

#include "common/activations.h"

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

}  // namespace fastcsm
