// Numbers of 16 bits, and what rounds to them.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace machine {

inline float to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

struct Half {
  uint16_t bits;
  float value() const { return _cvtsh_ss(bits); }
  static Half of(float x) { return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))}; }
};

struct Bfloat {
  uint16_t bits;
  float value() const { return to_float(uint32_t(bits) << 16); }
  static Bfloat of(float x) {
    const uint32_t bits = to_bits(x);
    if (x != x) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
};

// From double by way of a float that is rounded to odd, which a second rounding cannot spoil.
inline float to_odd(double x) {
  float y = float(x);
  if (double(y) != x && std::isfinite(y)) {
    if (std::fabs(double(y)) > std::fabs(x)) y = to_float(to_bits(y) - 1);
    y = to_float(to_bits(y) | 1);
  }
  return y;
}

inline float toward_zero(double x) {
  const float y = float(x);
  return std::fabs(double(y)) > std::fabs(x) ? to_float(to_bits(y) - 1) : y;
}
inline float downward(double x) {
  const float y = float(x);
  if (double(y) <= x || y != y) return y;
  return y == 0 ? to_float(0x80000001u) : to_float(y > 0 ? to_bits(y) - 1 : to_bits(y) + 1);
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace machine
