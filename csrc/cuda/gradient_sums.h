// The sums of weights' gradients over a block's tiles: what a warp sums of each, and where the sums lie between tiles.
#pragma once

#include "cuda/gradients.h"
#include "cuda/head_backward.h"

namespace fastcsm {

// Of a weight's gradient a warp has kSumRows rows and every kSumHalves-th tile of 8 columns; kFirstColumns is how many
// columns of the first weight's it sums at once.
constexpr int kSumRows = 32, kSumHalves = kThreads / kWarp / (kUnits / kSumRows), kFirstColumns = 80;
template <int kWidth>
using Sums = Accumulator[kSumRows / 16][kWidth / 8 / kSumHalves];
struct SumPlace {
  int row, half, lane;

  template <int kRows>
  FASTCSM_INLINE explicit SumPlace(const Place<kRows>& at)
      : row(at.warp % (kUnits / kSumRows) * kSumRows), half(at.warp / (kUnits / kSumRows)), lane(at.lane) {}

  // The row and the column of element i of accumulator [m][n].
  FASTCSM_INLINE int row_of(int m, int i) const { return row + 16 * m + lane / 4 + i / 2 * 8; }
  FASTCSM_INLINE int column_of(int n, int i) const { return 8 * (kSumHalves * n + half) + lane % 4 * 2 + i % 2; }
};

// Sums that registers do not hold: all of a head of more than two layers, and those of columns from kFirstColumns on.
// They have their places in the block's own device memory, thread beside thread, which the processor's cache holds:
// W_2's, ..., then W_1's in parts.
template <int K>
constexpr bool kResident = K <= 2;
template <int kWidth>
constexpr int kVectors = int(sizeof(Sums<kWidth>) / sizeof(float4));  // of a thread
template <int K>
struct Away {
  static constexpr int kFirst = kResident<K> ? kFirstColumns : 0;  // columns of W_1 whose sums are not away
  int vectors;                                                     // of a thread

  __host__ __device__ explicit Away(int columns)
      : vectors(first_at(round_up(columns - kFirst > 0 ? columns - kFirst : 0, kFirstColumns) + kFirst)) {}

  // Where in a thread's vectors those of hidden weight k begin, or those of W_1's columns from `column` on.
  __host__ __device__ static constexpr int hidden_at(int k) { return k * kVectors<kUnits>; }
  __host__ __device__ static constexpr int first_at(int column) {
    return (kResident<K> ? 0 : hidden_at(K - 1)) + (column - kFirst) / kFirstColumns * kVectors<kFirstColumns>;
  }

  FASTCSM_INLINE float4* place(const GradientArgs& args, int at) const {
    return args.away + (int64_t(blockIdx.x) * vectors + at) * kThreads + thread_number();
  }
};

template <int kWide>
FASTCSM_INLINE void get_sums(Accumulator (&sums)[kSumRows / 16][kWide], const float4* away) {
#pragma unroll
  for (int i = 0; i < kSumRows / 16 * kWide; ++i) {
    const float4 v = away[i * kThreads];
    sums[i / kWide][i % kWide] = {{v.x, v.y, v.z, v.w}};
  }
}
template <int kWide>
FASTCSM_INLINE void put_sums(const Accumulator (&sums)[kSumRows / 16][kWide], float4* away) {
#pragma unroll
  for (int i = 0; i < kSumRows / 16 * kWide; ++i) {
    const float* r = sums[i / kWide][i % kWide].r;
    away[i * kThreads] = {r[0], r[1], r[2], r[3]};
  }
}

// The warp's part of sums += G^T Z over `columns` columns of Z.
template <Precision P, int kRows, int kWide>
FASTCSM_INLINE void add_sums(Accumulator (&sums)[kSumRows / 16][kWide], const Place<kRows>& at, const Element<P>* g,
                             const Element<P>* z, int stride, int columns, int tangent_from) {
  const SumPlace part(at);
  add_outer<P, kSumHalves, kRows>(sums, at, g + part.row, z + 8 * part.half, stride, columns, tangent_from);
}

// Calls store(row, column, sum) for each of the thread's sums.
template <int kWide, class Store>
FASTCSM_INLINE void each_sum(const Accumulator (&sums)[kSumRows / 16][kWide], const SumPlace& part,
                             const Store& store) {
#pragma unroll
  for (int i = 0; i < kSumRows / 16 * kWide; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      store(part.row_of(i / kWide, j), part.column_of(i % kWide, j), sums[i / kWide][i % kWide].r[j]);
    }
  }
}

}  // namespace fastcsm
