// Sums over the lanes of a warp.
#pragma once

#include "cuda/device.h"

namespace fastcsm {

constexpr unsigned kAll = 0xffffffffu;

// Of n numbers a lane, n a power of 2, the sums over kLanes lanes; lane i gets that of number i % n.
template <int kLanes, int n>
FASTCSM_INLINE double sum_over_lanes(double (&x)[n], int lane) {
#pragma unroll
  for (int half = n / 2; half > 0; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double kept = upper ? x[half + i] : x[i], given = upper ? x[i] : x[half + i];
      x[i] = kept + __shfl_xor_sync(kAll, given, half);
    }
  }
#pragma unroll
  for (int lanes = n; lanes < kLanes; lanes *= 2) x[0] += __shfl_xor_sync(kAll, x[0], lanes);
  return x[0];
}

template <class T>
FASTCSM_INLINE T sum_over_lanes(T x) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

template <int kLanes>
FASTCSM_INLINE double most_over_lanes(double x) {
#pragma unroll
  for (int lanes = 1; lanes < kLanes; lanes *= 2) x = fmax(x, __shfl_xor_sync(kAll, x, lanes));
  return x;
}

// The sum over the lanes below this one.
template <class T>
FASTCSM_INLINE T sum_before(T x, int lane) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const T below = __shfl_sync(kAll, x, lane < lanes ? lane : lane - lanes);
    if (lane >= lanes) x += below;
  }
  const T sum = __shfl_sync(kAll, x, lane == 0 ? 0 : lane - 1);
  return lane == 0 ? T(0) : sum;
}

// The sum over the lanes above this one.
FASTCSM_INLINE double sum_after(double x, int lane) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const double above = __shfl_sync(kAll, x, lane + lanes < kWarp ? lane + lanes : lane);
    if (lane + lanes < kWarp) x += above;
  }
  const double sum = __shfl_sync(kAll, x, lane == kWarp - 1 ? lane : lane + 1);
  return lane == kWarp - 1 ? 0. : sum;
}

}  // namespace fastcsm
