// Sum over rows of alpha s^2/2 + beta s' + gamma s and its gradient with respect to everything, in one pass. A block is
// persistent: weights stay in its shared memory, the sums of the weights' gradients in its registers, and a tile of
// rows goes forward and back without touching device memory in between. Each block leaves one slice of partial sums; a
// second kernel adds the slices up, first block first.
//
// Of the last layer's a and t the thread makes ga and gt in place; G = [ga; gt] goes through shared memory to become
// the left operand of the two products that need it, as W^T G and as G^T Z. With Z = [z; u] the gradient of a weight is
// one product over the stacked rows, G^T Z = ga^T z + gt^T u, and so it is for the first layer with the stacked inputs,
// whose column of ones makes it the gradient of the first bias as well.
#include <tuple>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/gradients.h"
#include "cuda/head_backward.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

constexpr int kMaxColumns = 80;            // of the input, whose gradients' sums are kept in registers
constexpr int kLoss = 0, kOutputBias = 1;  // sums over rows

// Of a weight's gradient a warp has kSumRows rows and every kSumHalves-th tile of 8 columns.
constexpr int kSumRows = 32, kSumHalves = kThreads / kWarp / (kUnits / kSumRows);
template <int kColumnsAll>
using Sums = Accumulator[kSumRows / 16][kColumnsAll / 8 / kSumHalves];
struct SumPlace {
  int row, half, lane;

  FASTCSM_INLINE explicit SumPlace(const Place& at)
      : row(at.warp % (kUnits / kSumRows) * kSumRows), half(at.warp / (kUnits / kSumRows)), lane(at.lane) {}

  // The row and the column of element i of accumulator [m][n].
  FASTCSM_INLINE int row_of(int m, int i) const { return row + 16 * m + lane / 4 + i / 2 * 8; }
  FASTCSM_INLINE int column_of(int n, int i) const { return 8 * (kSumHalves * n + half) + lane % 4 * 2 + i % 2; }
};

template <Precision P, int K>
struct GradientMemory {
  Element<P>* z;    // (K - 1, 2 kRows, kUnits): [z; u] of all layers but the last
  Element<P>* g;    // (2 kRows, kUnits): [ga; gt] of one layer
  float* shares;    // (kColumnGroups, 2 kRows)
  float* upstream;  // (3, kRows): alpha, beta, gamma
  float* sums;      // (2, K, kUnits): of the two groups of rows; w_o's gradient, then the biases'
  float* row_sums;  // (2, kRows): the loss, b_o's gradient
  Head<P> head;
  Inputs<P> inputs;
  float* square;  // (columns): w^2 where the input is a sine or cosine

  __host__ __device__ GradientMemory(const HeadArgs& args, SharedMemory& memory)
      : z(memory.take<Element<P>>((K - 1) * 2 * kRows * Head<P>::kStride)),
        g(memory.take<Element<P>>(2 * kRows * Head<P>::kStride)),
        shares(memory.take<float>(kColumnGroups * 2 * kRows)),
        upstream(memory.take<float>(3 * kRows)),
        sums(memory.take<float>(2 * K * kUnits)),
        row_sums(memory.take<float>(2 * kRows)),
        head(args, K, memory),
        inputs(head, memory),
        square(memory.take<float>(head.columns)) {}
};

// Gradients of the inputs, [ga_1; gt_1] W_1: that of the context to memory, and that of x, which meets every feature's
// derivative in the primal and second derivative in the tangent, as shares (kColumnGroups, kRows). A warp has 16 rows
// and every kColumnGroups-th tile of 8 columns.
template <Precision P, int K>
FASTCSM_INLINE void inputs_backward(const GradientArgs& args, const GradientMemory<P, K>& m, const Place& at,
                                    int64_t first) {
  using T = Element<P>;
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<T>;
  const int C = int(args.head.context), stride = m.head.stride;
  const bool need_x = args.grad_x != nullptr;
  const T* primal = m.g + at.row * kStride;
  const T* tangent = primal + kRows * kStride;
  float gx[2] = {0.f, 0.f};
#pragma unroll 1
  for (int column = 8 * at.group; column < (need_x ? m.head.columns : C); column += 8 * kColumnGroups) {
    Accumulator gh = {}, rest = {}, gdh = {};
#pragma unroll 2
    for (int k = 0; k < kUnits; k += 2 * kStep) {
      FragmentA a[2];
      FragmentB b[2];
      load_columns_b(b, m.head.first + k * stride + column, stride, at.lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_a(a[i], primal + k + i * kStep, kStride, at.lane);
        multiply_add<P>(i == 0 ? gh : rest, a[i], b[i]);
      }
#pragma unroll
      for (int i = 0; need_x && i < 2; ++i) {
        load_a(a[i], tangent + k + i * kStep, kStride, at.lane);
        multiply_add<P>(gdh, a[i], b[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      gh.r[i] += rest.r[i];
      const int row = at.row_of(i), j = column + at.lane % 4 * 2 + i % 2;
      if (args.grad_context && j < C && first + row < args.rows) {
        static_cast<T*>(args.grad_context)[(first + row) * C + j] = to_storage<T>(gh.r[i]);
      }
      if (need_x) {
        const float h = from_storage(m.inputs.h[row * stride + place_of<T>(j)]);
        const float dh = from_storage(m.inputs.h[(kRows + row) * stride + place_of<T>(j)]);
        gx[i / 2] += gh.r[i] * dh - gdh.r[i] * (m.square[j] * h);
      }
    }
  }
  if (!need_x) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) gx[i] += __shfl_xor_sync(0xffffffffu, gx[i], lanes);
    if (at.lane % 4 == 0) m.shares[at.group * kRows + at.row_of(2 * i)] = gx[i];
  }
}

// Where in sums (2, K, kUnits) a lane keeps the first kind of the sum that add_column_sums gives it.
template <int K>
FASTCSM_INLINE int sum_place(const Place& at) {
  return at.row / 16 * K * kUnits + at.column + at.lane / 8 * 8 + at.lane % 4 * 2 + at.lane / 4 % 2;
}

// The warp's part of sums += G^T Z over `columns` columns of Z.
template <Precision P, int kWide>
FASTCSM_INLINE void add_sums(Accumulator (&sums)[kSumRows / 16][kWide], const Place& at, const Element<P>* g,
                             const Element<P>* z, int stride, int columns, int tangent_from) {
  const SumPlace part(at);
  add_outer<P, kSumHalves>(sums, at, g + part.row, z + 8 * part.half, stride, columns, tangent_from);
}

// Of the thread's row of a tile alpha, beta and gamma, zeros beyond the last.
struct Upstream {
  float alpha, beta, gamma;
};
template <class T>
FASTCSM_INLINE Upstream fetch_upstream(const GradientArgs& args, int64_t first) {
  const int64_t n = first + thread_number();
  if (thread_number() >= kRows || n >= args.rows) return {};
  if (args.grad_score) {
    return {0.f, from_storage(static_cast<const T*>(args.grad_derivative)[n]),
            from_storage(static_cast<const T*>(args.grad_score)[n])};
  }
  return {args.alpha[n * args.alpha_step], args.beta[n * args.beta_step], args.gamma[n * args.gamma_step]};
}

// The block's sums to its slice: those of the first layer and of W_2 from registers, the others from shared memory.
template <Precision P, int K>
FASTCSM_INLINE void store_slice(const GradientArgs& args, const GradientMemory<P, K>& m,
                                const Sums<kMaxColumns>& first_sums, const Sums<kUnits>& hidden_sums) {
  const int thread = thread_number();
  const Place at(thread);
  const int inputs = int(args.head.context + args.head.features());
  float* slice = args.partials + blockIdx.x * args.slice;
  if (thread < 2) {
    float sum = 0;
    for (int i = 0; i < kRows; ++i) sum += m.row_sums[thread * kRows + i];
    if (thread == kLoss) slice[args.slice - 1] = sum;
    if (thread == kOutputBias && args.params) slice[args.offset[2 * args.head.layers + 1]] = sum;
  }
  if (!args.params) return;
  for (int i = thread; i < K * kUnits; i += kThreads) {
    const int k = i / kUnits, j = i % kUnits;  // k = 0: w_o; 1: b_2
    const float sum = m.sums[i] + m.sums[K * kUnits + i];
    if (j < args.head.width[K - 1]) slice[args.offset[k == 0 ? K : K + 1 + k] + j] = sum;
  }
  const SumPlace part(at);
  const auto each = [](const auto& sums, const auto& store) {
#pragma unroll
    for (int m16 = 0; m16 < int(std::extent_v<std::remove_reference_t<decltype(sums)>, 0>); ++m16) {
#pragma unroll
      for (int n = 0; n < int(std::extent_v<std::remove_reference_t<decltype(sums)>, 1>); ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) store(m16, n, i, sums[m16][n].r[i]);
      }
    }
  };
  each(first_sums, [&](int m16, int n, int i, float sum) {
    const int j = part.row_of(m16, i), column = part.column_of(n, i);
    if (j >= args.head.width[0] || column > inputs) return;
    slice[column == inputs ? args.offset[K + 1] + j : args.offset[0] + j * inputs + column] = sum;
  });
  if constexpr (K > 1) {
    const int in = int(args.head.width[0]), out = int(args.head.width[1]);
    each(hidden_sums, [&](int m16, int n, int i, float sum) {
      const int j = part.row_of(m16, i), column = part.column_of(n, i);
      if (j < out && column < in) slice[args.offset[1] + j * in + column] = sum;
    });
  }
}

template <Precision P, int K>
__global__ void __launch_bounds__(kThreads, 1) csm_loss_kernel(const __grid_constant__ GradientArgs args) {
  using T = Element<P>;
  SharedMemory memory(block_memory());
  GradientMemory<P, K> m(args.head, memory);
  const int C = int(args.head.context), E = int(args.head.frequencies), inputs = C + 1 + 2 * E;
  const int activation = args.head.activation;
  m.head.load();
  m.inputs.clear(m.head);
  for (int i = threadIdx.x; i < 2 * K * kUnits; i += kThreads) m.sums[i] = 0;
  if (threadIdx.x < 2 * kRows) m.row_sums[threadIdx.x] = 0;
  for (int i = threadIdx.x; i < m.head.columns; i += kThreads) {
    const float w =
        i > C && i < inputs ? read_parameter(args.head.frequency, (i - C - 1) % E, P == Precision::bf16) : 0;
    m.square[i] = w * w;
  }
  __syncthreads();

  Sums<kMaxColumns> first_sums = {};  // W_1 and b_1
  Sums<kUnits> hidden_sums = {};      // W_2

  const int64_t step = int64_t(gridDim.x) * kRows;
  int64_t first = int64_t(blockIdx.x) * kRows;
  Fetched<P> next = m.inputs.fetch(m.head, args.context, args.x, first, args.rows);
  Upstream upstream = fetch_upstream<T>(args, first);
  for (; first < args.rows; first += step) {
    m.inputs.store(m.head, next, args.context, first, args.rows);
    if (thread_number() < kRows) {
      m.upstream[thread_number()] = upstream.alpha;
      m.upstream[kRows + thread_number()] = upstream.beta;
      m.upstream[2 * kRows + thread_number()] = upstream.gamma;
    }
    __syncthreads();

    Pair kept, layer, value;  // f'(a_1) and f''(a_1) t_1; the last layer's, then its gradients; z and u
    begin(layer, Place(), nullptr);
    const int stride = anew(m.head.stride);
    product_forward<P>(layer, Place(), m.inputs.h, stride, m.head.first, stride, m.head.columns, C);
    apply_activation<P>(layer, value, activation);
    if constexpr (K > 1) {
      kept = layer;
      store<P>(value, Place(), m.z);
      __syncthreads();
      begin(layer, Place(), m.head.bias);
      product_forward<P>(layer, Place(), m.z, Head<P>::kStride, m.head.matrix(0), Head<P>::kStride, kUnits, 0);
      apply_activation<P>(layer, value, activation);
    }
    store_shares(value, Place(), m.head.output, m.shares);
    __syncthreads();

    float g[2], p[2];
    const Place at;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.row_of(2 * i);
      const float s = sum_shares(m.shares, row) + m.head.output[kUnits], ds = sum_shares(m.shares, kRows + row);
      const float alpha = m.upstream[row], gamma = m.upstream[2 * kRows + row];
      p[i] = m.upstream[kRows + row];
      g[i] = alpha * s + gamma;
      // Rows beyond the last have no weight, but their s need not be finite.
      if (at.group != 0 || at.lane % 4 != 0 || first + row >= args.rows) continue;
      m.row_sums[kLoss * kRows + row] += s * (0.5f * alpha * s + gamma) + p[i] * ds;
      m.row_sums[kOutputBias * kRows + row] += g[i];
    }
    next = m.inputs.fetch(m.head, args.context, args.x, first + step, args.rows);
    upstream = fetch_upstream<T>(args, first + step);
    if (!args.params && !args.grad_context && !args.grad_x) {
      __syncthreads();
      continue;
    }

    output_backward(layer, value, Place(), m.head.output, g, p, m.sums + sum_place<K>(Place()));
    store<P>(layer, Place(), m.g);
    __syncthreads();
    if constexpr (K > 1) {
      add_bias_sums(layer, Place(), m.sums + sum_place<K>(Place()) + kUnits);
      if (args.params) add_sums<P>(hidden_sums, Place(), m.g, m.z, Head<P>::kStride, kUnits, 0);
      begin(layer, Place(), nullptr);
      product_backward<P>(layer, Place(), m.g, m.head.matrix(0));
      activation_backward(layer, kept);
      __syncthreads();
      store<P>(layer, Place(), m.g);
      __syncthreads();
    }
    if (args.params) add_sums<P>(first_sums, Place(), m.g, m.inputs.h, m.head.stride, m.head.columns, C);
    inputs_backward(args, m, Place(), first);
    __syncthreads();
    if (args.grad_x && threadIdx.x < kRows && first + threadIdx.x < args.rows) {
      float gx = 0;
#pragma unroll
      for (int group = 0; group < kColumnGroups; ++group) gx += m.shares[group * kRows + threadIdx.x];
      static_cast<T*>(args.grad_x)[first + threadIdx.x] = to_storage<T>(gx);
    }
  }

  __syncthreads();
  store_slice(args, m, first_sums, hidden_sums);
}

struct ReduceArgs {
  const float* partials;  // (blocks, slice)
  int64_t blocks, slice;
  int parameters;  // 0 where only the loss is wanted
  int64_t offset[2 * (kMaxLayers + 1)];
  void* out[2 * (kMaxLayers + 1)];
  bool bf16;
  float* loss;  // may be null
};

constexpr int kReduceThreads = 128;

__global__ void __launch_bounds__(kReduceThreads) reduce_partials_kernel(const __grid_constant__ ReduceArgs args) {
  const int64_t i = int64_t(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (i >= args.slice) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t block = 0; block < args.blocks; ++block) sum += args.partials[block * args.slice + i];
  if (i == args.slice - 1) {
    if (args.loss) *args.loss = sum;
    return;
  }
  int k = 0;
  while (k + 1 < args.parameters && i >= args.offset[k + 1]) ++k;
  if (args.bf16) {
    static_cast<Bf16*>(args.out[k])[i - args.offset[k]] = to_storage<Bf16>(sum);
  } else {
    static_cast<float*>(args.out[k])[i - args.offset[k]] = sum;
  }
}

template <Precision P, int K>
int gradient_bytes(const HeadArgs& head) {
  SharedMemory measure;
  const GradientMemory<P, K> memory(head, measure);
  if (memory.head.columns > kMaxColumns) {
    throw std::invalid_argument("fastcsm: the cuda kernel of the gradients takes at most 79 inputs of the head");
  }
  return measure.used();
}

// Calls function(precision, layers) with both as constants.
template <class Function>
void with_kernel(const HeadArgs& head, const Function& function) {
  with_precision(head, [&](auto precision) {
    if (head.layers == 1) {
      function(precision, std::integral_constant<int, 1>());
    } else if (head.layers == 2) {
      function(precision, std::integral_constant<int, 2>());
    } else {
      throw std::invalid_argument("fastcsm: the cuda kernel of the gradients takes at most 2 hidden layers");
    }
  });
}

}  // namespace

int64_t csm_loss_bytes(const HeadArgs& head) {
  int64_t bytes = 0;
  with_kernel(head, [&](auto precision, auto layers) { bytes = gradient_bytes<precision.value, layers.value>(head); });
  return bytes;
}

void run_gradients(GradientArgs args, const GradientTensors& gradients, float* loss, const Tensor& x,
                   const Device& device) {
  const int64_t tiles = (args.rows + kRows - 1) / kRows, most = device.multiprocessors();
  const int64_t blocks = tiles < 1 ? 1 : tiles < most ? tiles : most;
  args.grad_context = gradients.pointers.context;
  args.grad_x = gradients.pointers.x;
  args.params = gradients.pointers.params;
  ReduceArgs reduce{};
  reduce.parameters = int(gradients.weights.size() + gradients.biases.size());
  for (int k = 0; k < reduce.parameters; ++k) {
    const int layers = int(gradients.weights.size());
    const Tensor& parameter = k < layers ? gradients.weights[k] : gradients.biases[k - layers];
    reduce.out[k] = parameter.mutable_data_ptr();
    reduce.offset[k] = args.offset[k] = args.slice;
    args.slice += parameter.numel();
  }
  ++args.slice;
  Tensor partials = torch::stable::new_empty(x, {blocks * args.slice}, torch::headeronly::ScalarType::Float);
  args.partials = static_cast<float*>(partials.mutable_data_ptr());
  with_kernel(args.head, [&](auto precision, auto layers) {
    constexpr Precision kPrecision = decltype(precision)::value;
    constexpr int kLayers = decltype(layers)::value;
    device.launch(csm_loss_kernel<kPrecision, kLayers>, blocks, kThreads,
                  gradient_bytes<kPrecision, kLayers>(args.head), args);
  });
  reduce.partials = args.partials;
  reduce.blocks = blocks;
  reduce.slice = args.slice;
  reduce.bf16 = args.head.storage == Storage::bf16;
  reduce.loss = loss;
  device.launch(reduce_partials_kernel, (args.slice + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, reduce);
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors> csm_loss(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                              Tensor frequencies, int64_t activation, Tensor alpha,
                                                              Tensor beta, Tensor gamma, bool need_context, bool need_x,
                                                              bool need_params, bool reduced) {
  GradientArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  set_coefficients(a, x, alpha, beta, gamma);
  const Device device(x);
  GradientTensors g = new_gradients(context, x, weights, biases, need_context, need_x, need_params);
  Tensor loss = torch::stable::new_empty(alpha, {}, compute_type(x));
  run_gradients(a, g, static_cast<float*>(loss.mutable_data_ptr()), x, device);
  return {loss, g.context, g.x, g.weights, g.biases};
}

}  // namespace fastcsm
