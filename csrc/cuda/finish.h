// What becomes of a product's sums: bias, activation or mask, and the element they are stored as; and the sum of the
// parts that several blocks have of them.
#pragma once

#include "cuda/activations.h"
#include "cuda/product.h"

namespace fastcsm {

constexpr int kSumThreads = 256;

// What becomes of the sums of a row's four neighbours.
struct Finish {
  void *out, *preactivation;                // (rows, columns)
  const void* bias;                         // (columns); may be null
  const int64_t *in_degrees, *out_degrees;  // null unless the mask is to be laid on the sums
  int64_t rows;
  int columns, activation;
  bool aligned;

  template <Precision P, bool kActivates>
  FASTCSM_INLINE void operator()(int64_t row, int column, float (&values)[4]) const {
    using T = Element<P>;
    const int count = columns - column;
    if (row >= rows || count <= 0) return;
    const int64_t place = row * columns + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (bias && i < count) values[i] += from_storage(static_cast<const T*>(bias)[column + i]);
      if (in_degrees && i < count && in_degrees[column + i] > out_degrees[row]) values[i] = 0.f;
    }
    if constexpr (kActivates) {
      if (activation >= 0) {
        store_four(static_cast<T*>(preactivation) + place, values, count, aligned);
        with_activation(activation, [&](auto code) {
#pragma unroll
          for (int i = 0; i < 4; ++i) values[i] = activation_value<P, decltype(code)::value>(values[i]);
        });
      }
    }
    store_four(static_cast<T*>(out) + place, values, count, aligned);
  }
};

// Adds up the parts of sums, first part first.
struct SumArgs {
  const float* partials;  // (parts, rows, columns)
  int parts;
  Finish finish;
};

template <Precision P>
__global__ void __launch_bounds__(kSumThreads) masked_linear_sum_kernel(const __grid_constant__ SumArgs args) {
  const Finish& finish = args.finish;
  const int64_t fours = (finish.columns + 3) / 4, all = finish.rows * fours;
  for (int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x; i < all; i += int64_t(gridDim.x) * kSumThreads) {
    const int64_t row = i / fours;
    const int column = int(i % fours) * 4, count = finish.columns - column;
    bool any = finish.in_degrees == nullptr;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      any = any || (j < count && finish.in_degrees[column + j] <= finish.out_degrees[row]);
    }
    float sums[4] = {};
    for (int part = 0; any && part < args.parts; ++part) {
      float values[4];
      const float* from = args.partials + ((part * finish.rows + row) * finish.columns + column);
      load_four(values, from, count, finish.columns % 4 == 0);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] += values[j];
    }
    finish.operator()<P, true>(row, column, sums);
  }
}

}  // namespace fastcsm
