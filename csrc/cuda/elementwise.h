// What a masked layer does to elements: bias, activation or mask of a product's sums, and the sum of the parts that
// several blocks have of them; and the activation's derivative.
#pragma once

#include "cuda/activations.h"
#include "cuda/product.h"

namespace fastcsm {

constexpr int kSumThreads = 256;

// What becomes of the sums of a row's four neighbours.
struct Finish {
  void *out, *preactivation;                // (rows, columns)
  const void* bias;                         // (columns); may be null
  const int64_t *in_degrees, *out_degrees;  // null where no mask is laid on the sums
  int64_t rows;
  int columns, activation;
  bool aligned;

  template <Precision P, bool kActivates>
  FASTCSM_INLINE void store(int64_t row, int column, float (&values)[4], bool masked) const {
    using T = Element<P>;
    const int count = columns - column;
    if (row >= rows || count <= 0) return;
    const int64_t place = row * columns + column;
    if (masked) {
      const int64_t degree = out_degrees[row];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count && in_degrees[column + i] > degree) values[i] = 0.f;
      }
    }
    if (bias) {
      const T* from = static_cast<const T*>(bias) + column;
      float more[4];
      load_four(more, from, count, reinterpret_cast<uintptr_t>(from) % (4 * sizeof(T)) == 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] += more[i];
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
    const int parts = any ? args.parts : 0;
#pragma unroll 4
    for (int part = 0; part < parts; ++part) {
      float values[4];
      const float* from = args.partials + ((part * finish.rows + row) * finish.columns + column);
      load_four(values, from, count, finish.columns % 4 == 0);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] += values[j];
    }
    finish.store<P, true>(row, column, sums, finish.in_degrees != nullptr);
  }
}

// grad = grad_y f'(a) of a slice of the batch, and the sum of its columns.
struct ActivationArgs {
  const void *grad_y, *preactivation;  // (B, O)
  void* grad;                          // (B, O); null: f' = 1
  int64_t rows, slice_rows;
  int outputs, activation;
  bool aligned;
  void* bias;   // (O), of one slice
  float* sums;  // (slices, O); null: not of several slices
};

constexpr int kActivationColumns = 64, kActivationRows = kSumThreads / (kActivationColumns / 4);

template <Precision P>
__global__ void __launch_bounds__(kSumThreads)
    masked_linear_bwd_activation_kernel(const __grid_constant__ ActivationArgs args) {
  using T = Element<P>;
  SharedMemory memory(block_memory());
  float* shares = memory.take<float>(kActivationRows * kActivationColumns);
  const int column_blocks = (args.outputs + kActivationColumns - 1) / kActivationColumns;
  const int thread = int(threadIdx.x), slice = int(blockIdx.x) / column_blocks;
  const int in_block = thread % (kActivationColumns / 4) * 4, lane = thread / (kActivationColumns / 4);
  const int first = int(blockIdx.x) % column_blocks * kActivationColumns, column = first + in_block;
  const int count = args.outputs - column;
  const int64_t begin = slice * args.slice_rows;
  const int64_t end = begin + args.slice_rows < args.rows ? begin + args.slice_rows : args.rows;
  float sums[4] = {};
  if (args.grad == nullptr) {
    for (int64_t row = begin + lane; row < end; row += kActivationRows) {
      float g[4];
      load_four(g, static_cast<const T*>(args.grad_y) + row * args.outputs + column, count, args.aligned);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += g[i];
    }
  } else if (count > 0) {
    with_activation(args.activation, [&](auto code) {
      for (int64_t row = begin + lane; row < end; row += kActivationRows) {
        const int64_t place = row * args.outputs + column;
        float g[4], a[4], f, d, e;
        load_four(g, static_cast<const T*>(args.grad_y) + place, count, args.aligned);
        load_four(a, static_cast<const T*>(args.preactivation) + place, count, args.aligned);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          activate<decltype(code)::value>(a[i], f, d, e);
          g[i] *= d;
          sums[i] += g[i];
        }
        store_four(static_cast<T*>(args.grad) + place, g, count, args.aligned);
      }
    });
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) shares[lane * kActivationColumns + in_block + i] = sums[i];
  __syncthreads();
  if (thread >= kActivationColumns || first + thread >= args.outputs) return;
  float sum = 0;
  for (int i = 0; i < kActivationRows; ++i) sum += shares[i * kActivationColumns + thread];
  if (args.sums) args.sums[int64_t(slice) * args.outputs + first + thread] = sum;
  if (args.bias) static_cast<T*>(args.bias)[first + thread] = to_storage<T>(sum);
}

}  // namespace fastcsm
