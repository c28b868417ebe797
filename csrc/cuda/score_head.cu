// (s, s') for every row in one pass. Blocks are persistent: each keeps the head in shared memory and takes every
// gridDim-th tile of kRows rows. The backward pass is csm_loss's kernel, given its upstream gradients.
#include <tuple>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/gradients.h"
#include "cuda/head.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

struct ScoreHeadArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x;
  void *score, *derivative;  // derivative is null where not wanted
};

template <Precision P, int kRows>
struct ForwardMemory {
  Head<P> head;
  Inputs<P, kRows> inputs;
  Element<P>* z;  // (2, 2 kRows, kUnits), of layers in turn; the second where three or more need it
  float* shares;  // (kColumnGroups, 2 kRows)

  __host__ __device__ ForwardMemory(const HeadArgs& args, SharedMemory& memory)
      : head(args, int(args.layers), memory), inputs(head, memory) {
    z = memory.take<Element<P>>((args.layers > 2 ? 2 : 1) * 2 * kRows * Head<P>::kStride);
    shares = memory.take<float>(kColumnGroups<kRows> * 2 * kRows);
  }
};

template <Precision P, int kRows>
__global__ void __launch_bounds__(kThreads, 1) score_head_fwd_kernel(const __grid_constant__ ScoreHeadArgs args) {
  SharedMemory memory(block_memory());
  ForwardMemory<P, kRows> m(args.head, memory);
  const Place<kRows> at;
  m.head.load();
  m.inputs.clear(m.head);
  __syncthreads();
  const bool slope = args.derivative != nullptr;
  const int64_t step = int64_t(gridDim.x) * kRows;
  Fetched<P, kRows> next = m.inputs.fetch(m.head, args.context, args.x, int64_t(blockIdx.x) * kRows, args.rows);
  for (int64_t first = int64_t(blockIdx.x) * kRows; first < args.rows; first += step) {
    m.inputs.store(m.head, next, args.context, first, args.rows);
    __syncthreads();
    next = m.inputs.fetch(m.head, args.context, args.x, first + step, args.rows);
    Pair<kRows> layer, value;
    begin(layer, at, nullptr);
    product_first<P>(layer, at, m.inputs.h, m.head.first, m.head.stride, m.head.columns,
                     slope ? int(args.head.context) : m.head.columns);
#pragma unroll 1
    for (int k = 0; k + 1 < args.head.layers; ++k) {
      Element<P>* z = m.z + k % 2 * 2 * kRows * Head<P>::kStride;
      apply_activation<P>(layer, value, args.head.activation);
      store<P>(value, at, z);
      begin(layer, at, m.head.bias + k * kUnits);
      product_forward<P>(layer, at, value, z, m.head.matrix(k), slope);
    }
    apply_activation<P>(layer, value, args.head.activation);
    store_shares(value, at, m.head.output, m.shares);
    __syncthreads();
    if (threadIdx.x < 2 * kRows) {
      const int row = threadIdx.x % kRows;
      const float sum = sum_shares<kRows>(m.shares, threadIdx.x);
      const bool primal = threadIdx.x < kRows;
      if (first + row < args.rows && (primal || slope)) {
        auto* out = static_cast<Element<P>*>(primal ? args.score : args.derivative);
        out[first + row] = to_storage<Element<P>>(primal ? sum + m.head.output[kUnits] : sum);
      }
    }
    // The next tile's barrier after its inputs stands between this reading of the shares and their next writing.
  }
}

template <Precision P, int kRows>
int forward_bytes(const HeadArgs& head) {
  SharedMemory measure;
  ForwardMemory<P, kRows>(head, measure);
  return measure.used();
}

// Calls function(precision, rows) with the larger tile that fits `limit` bytes, else the smaller.
template <class Function>
void with_forward(const HeadArgs& head, int64_t limit, const Function& function) {
  with_precision(head, [&](auto precision) {
    if (forward_bytes<precision.value, 32>(head) <= limit) {
      function(precision, std::integral_constant<int, 32>());
    } else {
      function(precision, std::integral_constant<int, 16>());
    }
  });
}

}  // namespace

int64_t score_head_bytes(const HeadArgs& head, int64_t limit) {
  int64_t bytes = 0;
  with_forward(head, limit,
               [&](auto precision, auto rows) { bytes = forward_bytes<precision.value, rows.value>(head); });
  return bytes;
}

std::tuple<Tensor, Tensor> score_head(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                      int64_t activation, bool derivative, bool reduced) {
  ScoreHeadArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  const Device device(x);
  Tensor score = new_like(x), slope = derivative ? new_like(x) : new_tensor(x, {0});
  a.score = score.mutable_data_ptr();
  a.derivative = derivative ? slope.mutable_data_ptr() : nullptr;
  with_forward(a.head, block_limit(), [&](auto precision, auto rows) {
    constexpr Precision P = decltype(precision)::value;
    constexpr int kRows = decltype(rows)::value;
    const int64_t tiles = (a.rows + kRows - 1) / kRows, most = device.multiprocessors();
    const int64_t blocks = tiles < most ? tiles : most;
    if (blocks > 0) {
      device.launch(score_head_fwd_kernel<P, kRows>, blocks, kThreads, forward_bytes<P, kRows>(a.head), a);
    }
  });
  return {score, slope};
}

std::tuple<Tensor, Tensor, Tensors, Tensors> score_head_backward(Tensor grad_score, Tensor grad_derivative,
                                                                 Tensor context, Tensor x, Tensors weights,
                                                                 Tensors biases, Tensor frequencies, int64_t activation,
                                                                 bool need_context, bool need_x, bool need_params,
                                                                 bool reduced) {
  GradientArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  a.grad_score = checked(grad_score, "grad_score", x.scalar_type(), a.rows);
  a.grad_derivative = checked(grad_derivative, "grad_derivative", x.scalar_type(), a.rows);
  const Device device(x);
  GradientTensors g = new_gradients(context, x, weights, biases, need_context, need_x, need_params);
  run_gradients(a, g, nullptr, x, device);
  return {g.context, g.x, g.weights, g.biases};
}

}  // namespace fastcsm
