// Sum over rows of alpha s^2/2 + beta s' + gamma s and its gradient with respect to everything, in one pass. A block is
// persistent: weights stay in its shared memory, the sums of the weights' gradients in its registers (those of deep
// heads and of many inputs in device memory of its own), and a tile of rows goes forward and back without touching
// device memory in between. Each block leaves one slice of partial sums; a second kernel adds the slices up, first
// block first.
//
// Of the last layer's f'(a) and f''(a) t the thread makes ga and gt in place; G = [ga; gt] goes through shared memory
// to become the left operand of the two products that need it, as W^T G and as G^T Z. With Z = [z; u] the gradient of a
// weight is one product over the stacked rows, G^T Z = ga^T z + gt^T u, and so it is for the first layer with the
// stacked inputs, whose column of ones makes it the gradient of the first bias as well.
//
// Counted in sm_90's code, a tile of 32 rows of the default head keeps shared memory busy for about 4,900 cycles in
// bfloat16 (9,300 in tf32), a quarter of the processor issuing for 4,100 (6,900), its matrix unit for 2,100 (4,200) at
// full rate, its special function unit for 600 (1,100). So what is saved is first of all reads of operands: the part
// of a warp is as wide as registers allow, what it has just computed it multiplies before it reads the others' parts,
// and no read meets a bank twice. Then instructions: activations leave behind what the way back needs of them.
#include <tuple>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/gradient_sums.h"
#include "cuda/gradients.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

constexpr int kLoss = 0, kOutputBias = 1;  // sums over rows

template <Precision P, int K, int kRows>
struct GradientMemory {
  Element<P>* z;    // (K - 1, 2 kRows, kUnits): [z; u] of all layers but the last
  Element<P>* g;    // (2 kRows, kUnits): [ga; gt] of one layer
  float* shares;    // (kColumnGroups, 2 kRows)
  float* upstream;  // (3, kRows): alpha, beta, gamma
  float* sums;      // (kRows / 16, K, kUnits): of the groups of rows; w_o's gradient, then the biases'
  float* row_sums;  // (2, kRows): the loss, b_o's gradient
  Head<P> head;
  Inputs<P, kRows> inputs;
  float* square;  // (columns): w^2 where the input is a sine or cosine

  __host__ __device__ GradientMemory(const HeadArgs& args, SharedMemory& memory)
      : z(memory.take<Element<P>>((K - 1) * kLayer)),
        g(memory.take<Element<P>>(kLayer)),
        shares(memory.take<float>(kColumnGroups<kRows> * 2 * kRows)),
        upstream(memory.take<float>(3 * kRows)),
        sums(memory.take<float>(kRows / 16 * K * kUnits)),
        row_sums(memory.take<float>(2 * kRows)),
        head(args, K, memory),
        inputs(head, memory),
        square(memory.take<float>(head.columns)) {}

  static constexpr int kLayer = 2 * kRows * Head<P>::kStride;
};

// Gradients of the inputs, [ga_1; gt_1] W_1: that of the context to memory, and that of x, which meets every feature's
// derivative in the primal and second derivative in the tangent, as shares (kColumnGroups, kRows). A warp has 16 rows
// and every kColumnGroups-th tile of 8 columns.
template <Precision P, int K, int kRows>
FASTCSM_INLINE void inputs_backward(const GradientArgs& args, const GradientMemory<P, K, kRows>& m,
                                    const Place<kRows>& at, int64_t first) {
  using T = Element<P>;
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<P>, kTwo = kTogether<P>;
  const int C = int(args.head.context), stride = m.head.stride;
  const bool need_x = args.grad_x != nullptr;
  const T* primal = m.g + at.row * kStride;
  const T* tangent = primal + kRows * kStride;
  float gx[2] = {0.f, 0.f};
#pragma unroll 1
  for (int column = 8 * at.group; column < (need_x ? m.head.columns : C); column += 8 * kColumnGroups<kRows>) {
    Accumulator gh = {}, rest = {}, gdh = {};
#pragma unroll 2
    for (int k = 0; k < kUnits; k += kTwo * kStep) {
      FragmentA<P> a[kTwo];
      FragmentB<P> b[kTwo];
      load_columns_b<P>(b, m.head.first + k * stride + column, stride, at.lane);
      OperandB<P> of_w[kTwo];
#pragma unroll
      for (int i = 0; i < kTwo; ++i) {
        load_a(a[i], primal + k + i * kStep, kStride, at.lane);
        of_w[i] = OperandB<P>(b[i]);
        multiply_add(i == 0 ? gh : rest, OperandA<P>(a[i]), of_w[i]);
      }
#pragma unroll
      for (int i = 0; need_x && i < kTwo; ++i) {
        load_a(a[i], tangent + k + i * kStep, kStride, at.lane);
        multiply_add(gdh, OperandA<P>(a[i]), of_w[i]);
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

// Where in sums (kRows / 16, K, kUnits) a lane keeps the first kind of the sum that add_column_sums gives it.
template <int K, int kRows>
FASTCSM_INLINE int sum_place(const Place<kRows>& at) {
  return at.row / 16 * K * kUnits + column_of_sum(at);
}

// Of the thread's row of a tile alpha, beta and gamma, zeros beyond the last.
struct Upstream {
  float alpha, beta, gamma;
};
template <class T, int kRows>
FASTCSM_INLINE Upstream fetch_upstream(const GradientArgs& args, int64_t first) {
  const int64_t n = first + thread_number();
  if (thread_number() >= kRows || n >= args.rows) return {};
  if (args.grad_score) {
    return {0.f, from_storage(static_cast<const T*>(args.grad_derivative)[n]),
            from_storage(static_cast<const T*>(args.grad_score)[n])};
  }
  return {args.alpha[n * args.alpha_step], args.beta[n * args.beta_step], args.gamma[n * args.gamma_step]};
}

// The block's sums to its slice: from registers, from its own memory, and those of rows, w_o and b_2 .. from shared
// memory.
template <Precision P, int K, int kRows>
FASTCSM_INLINE void store_slice(const GradientArgs& args, const GradientMemory<P, K, kRows>& m,
                                Sums<kFirstColumns>& first_sums, Sums<kUnits>& hidden_sums) {
  const int thread = thread_number();
  const SumPlace part{Place<kRows>(thread)};
  const int inputs = int(args.head.context + args.head.features());
  float* slice = args.partials + blockIdx.x * args.slice;
  if (thread < 2) {
    float sum = 0;
    for (int i = 0; i < kRows; ++i) sum += m.row_sums[thread * kRows + i];
    if (thread == kLoss) slice[args.slice - 1] = sum;
    if (thread == kOutputBias && args.params) slice[args.offset[2 * K + 1]] = sum;
  }
  if (!args.params) return;
  for (int i = thread; i < K * kUnits; i += kThreads) {
    const int k = i / kUnits, j = i % kUnits;  // k = 0: w_o; 1: b_2 ..
    float sum = 0;
#pragma unroll
    for (int group = 0; group < kRows / 16; ++group) sum += m.sums[group * K * kUnits + i];
    if (j < args.head.width[k == 0 ? K - 1 : k]) slice[args.offset[k == 0 ? K : K + 1 + k] + j] = sum;
  }
  const Away<K> away(m.head.columns);
#pragma unroll 1
  for (int k = 0; k + 1 < K; ++k) {
    if constexpr (!kResident<K>) get_sums(hidden_sums, away.place(args, away.hidden_at(k)));
    const int in = int(args.head.width[k]), out = int(args.head.width[k + 1]);
    float* to = slice + args.offset[k + 1];
    each_sum(hidden_sums, part, [&](int j, int column, float sum) {
      if (j < out && column < in) to[j * in + column] = sum;
    });
  }
#pragma unroll 1
  for (int from = 0; from < m.head.columns; from += kFirstColumns) {
    if (from >= away.kFirst) get_sums(first_sums, away.place(args, away.first_at(from)));
    each_sum(first_sums, part, [&](int j, int column, float sum) {
      column += from;
      if (j >= args.head.width[0] || column > inputs) return;
      slice[column == inputs ? args.offset[K + 1] + j : args.offset[0] + j * inputs + column] = sum;
    });
  }
}

template <Precision P, int K, int kRows>
__global__ void __launch_bounds__(kThreads, 1) csm_loss_kernel(const __grid_constant__ GradientArgs args) {
  using T = Element<P>;
  using At = Place<kRows>;
  constexpr int kStride = Head<P>::kStride;
  SharedMemory memory(block_memory());
  GradientMemory<P, K, kRows> m(args.head, memory);
  const int C = int(args.head.context), E = int(args.head.frequencies), inputs = C + 1 + 2 * E;
  const int activation = args.head.activation;
  m.head.load();
  m.inputs.clear(m.head);
  for (int i = threadIdx.x; i < kRows / 16 * K * kUnits; i += kThreads) m.sums[i] = 0;
  if (threadIdx.x < 2 * kRows) m.row_sums[threadIdx.x] = 0;
  for (int i = threadIdx.x; i < m.head.columns; i += kThreads) {
    const float w =
        i > C && i < inputs ? read_parameter(args.head.frequency, (i - C - 1) % E, P == Precision::bf16) : 0;
    m.square[i] = w * w;
  }
  for (int i = 0; i < Away<K>(m.head.columns).vectors; ++i) *Away<K>(m.head.columns).place(args, i) = {};
  __syncthreads();

  Sums<kFirstColumns> first_sums = {};  // W_1 and b_1
  Sums<kUnits> hidden_sums = {};        // W_2

  const int64_t step = int64_t(gridDim.x) * kRows;
  int64_t first = int64_t(blockIdx.x) * kRows;
  Fetched<P, kRows> next;
  Upstream upstream;
  const auto fetch = [&](int64_t of) {
    next = m.inputs.fetch(m.head, args.context, args.x, of, args.rows);
    upstream = fetch_upstream<T, kRows>(args, of);
  };
  fetch(first);
  for (; first < args.rows; first += step) {
    m.inputs.store(m.head, next, args.context, first, args.rows);
    if (thread_number() < kRows) {
      m.upstream[thread_number()] = upstream.alpha;
      m.upstream[kRows + thread_number()] = upstream.beta;
      m.upstream[2 * kRows + thread_number()] = upstream.gamma;
    }
    __syncthreads();

    // f'(a_k) and f''(a_k) t_k of the layers below; the same of the last, then gradients; z and u of one.
    Pair<kRows> kept[K - 1 ? K - 1 : 1], layer, value;
    begin(layer, At(), nullptr);
    const int stride = anew(m.head.stride);
    product_first<P>(layer, At(), m.inputs.h, m.head.first, stride, m.head.columns, C);
    apply_activation<P>(layer, value, activation);
#pragma unroll
    for (int k = 0; k + 1 < K; ++k) {
      kept[k] = layer;
      store<P>(value, At(), m.z + k * m.kLayer);
      begin(layer, At(), m.head.bias + k * kUnits);
      product_forward<P>(layer, At(), value, m.z + k * m.kLayer, m.head.matrix(k), true);
      apply_activation<P>(layer, value, activation);
    }
    store_shares(value, At(), m.head.output, m.shares);
    __syncthreads();

    float g[2], p[2];
    const At at;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.row_of(2 * i);
      const float s = sum_shares<kRows>(m.shares, row) + m.head.output[kUnits];
      const float ds = sum_shares<kRows>(m.shares, kRows + row);
      const float alpha = m.upstream[row], gamma = m.upstream[2 * kRows + row];
      p[i] = m.upstream[kRows + row];
      g[i] = alpha * s + gamma;
      // Rows beyond the last have no weight, but their s need not be finite.
      if (at.group != 0 || at.lane % 4 != 0 || first + row >= args.rows) continue;
      m.row_sums[kLoss * kRows + row] += s * (0.5f * alpha * s + gamma) + p[i] * ds;
      m.row_sums[kOutputBias * kRows + row] += g[i];
    }
    if (!args.params && !args.grad_context && !args.grad_x) {
      fetch(first + step);
      __syncthreads();
      continue;
    }

    output_backward(layer, value, At(), m.head.output, g, p, m.sums + sum_place<K>(At()));
    store<P>(layer, At(), m.g);
#pragma unroll
    for (int k = K - 2; k >= 0; --k) {
      add_bias_sums(layer, At(), m.sums + sum_place<K>(At()) + (k + 1) * kUnits);
      Pair<kRows> below;
      begin(below, At(), nullptr);
      product_backward<P>(below, At(), layer, m.g, m.head.matrix(k));
      activation_backward(below, kept[k]);
      if (args.params) {
        const auto own = [&] { return Away<K>(m.head.columns).place(args, Away<K>::hidden_at(k)); };
        if constexpr (!kResident<K>) get_sums(hidden_sums, own());
        add_sums<P>(hidden_sums, At(), m.g, m.z + k * m.kLayer, kStride, kUnits, 0);
        if constexpr (!kResident<K>) put_sums(hidden_sums, own());
      }
      layer = below;
      __syncthreads();
      store<P>(layer, At(), m.g);
    }
    __syncthreads();
    fetch(first + step);
    if (args.params) {
      const int columns = m.head.columns;
      if constexpr (kResident<K>) add_sums<P>(first_sums, At(), m.g, m.inputs.h, m.head.stride, columns, C);
#pragma unroll 1
      for (int from = Away<K>::kFirst; from < columns; from += kFirstColumns) {
        Sums<kFirstColumns> sums;
        float4* own = Away<K>(columns).place(args, Away<K>::first_at(from));
        get_sums(sums, own);
        add_sums<P>(sums, At(), m.g, m.inputs.h + from, m.head.stride, columns - from, C - from);
        put_sums(sums, own);
      }
    }
    inputs_backward(args, m, At(), first);
    __syncthreads();
    if (args.grad_x && threadIdx.x < kRows && first + threadIdx.x < args.rows) {
      float gx = 0;
#pragma unroll
      for (int group = 0; group < kColumnGroups<kRows>; ++group) gx += m.shares[group * kRows + threadIdx.x];
      static_cast<T*>(args.grad_x)[first + threadIdx.x] = to_storage<T>(gx);
    }
  }

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

template <Precision P, int K, int kRows>
int gradient_bytes(const HeadArgs& head) {
  SharedMemory measure;
  GradientMemory<P, K, kRows>(head, measure);
  return measure.used();
}

// No block holds four layers of float32, nor three with the larger tile.
template <Precision P, int K>
constexpr bool kNeverFits = P != Precision::bf16 && K > 3;

// Calls function(precision, layers, rows), all constants, with the larger tile that fits `limit` bytes, else the
// smaller, which only float32 has.
template <class Function>
void with_kernel(const HeadArgs& head, int64_t limit, const Function& function) {
  const auto with_layers = [&](auto layers) {
    with_precision(head, [&](auto precision) {
      constexpr Precision P = decltype(precision)::value;
      constexpr int K = decltype(layers)::value;
      using Small = std::integral_constant<int, 16>;
      using Large = std::integral_constant<int, 32>;
      if constexpr (P == Precision::bf16 || K == 1) {
        function(precision, layers, Large());
      } else if constexpr (K > 2) {
        function(precision, layers, Small());
      } else if (gradient_bytes<P, K, 32>(head) <= limit) {
        function(precision, layers, Large());
      } else {
        function(precision, layers, Small());
      }
    });
  };
  switch (head.layers) {
    case 1:
      return with_layers(std::integral_constant<int, 1>());
    case 2:
      return with_layers(std::integral_constant<int, 2>());
    case 3:
      return with_layers(std::integral_constant<int, 3>());
    default:
      return with_layers(std::integral_constant<int, 4>());
  }
}

}  // namespace

int64_t csm_loss_bytes(const HeadArgs& head, int64_t limit) {
  int64_t bytes = 0;
  with_kernel(head, limit, [&](auto precision, auto layers, auto rows) {
    bytes = gradient_bytes<precision.value, layers.value, rows.value>(head);
  });
  return bytes;
}

void run_gradients(GradientArgs args, const GradientTensors& gradients, float* loss, const Tensor& x,
                   const Device& device) {
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
  with_kernel(args.head, block_limit(), [&](auto precision, auto layers, auto rows) {
    constexpr Precision P = decltype(precision)::value;
    constexpr int K = decltype(layers)::value, kRows = decltype(rows)::value;
    if constexpr (kNeverFits<P, K>) {
      throw std::invalid_argument("fastcsm: a head of 4 layers of float32 does not fit a block's shared memory");
    } else {
      const int64_t tiles = (args.rows + kRows - 1) / kRows, most = device.multiprocessors();
      const int64_t blocks = tiles < 1 ? 1 : tiles < most ? tiles : most;
      SharedMemory measure;
      const Away<K> sums(GradientMemory<P, K, kRows>(args.head, measure).head.columns);
      const auto floats = [&](int64_t count) { return new_tensor(x, {count}, torch::headeronly::ScalarType::Float); };
      Tensor partials = floats(blocks * args.slice), away = floats(blocks * sums.vectors * kThreads * 4);
      args.partials = static_cast<float*>(partials.mutable_data_ptr());
      args.away = static_cast<float4*>(away.mutable_data_ptr());
      device.launch(csm_loss_kernel<P, K, kRows>, blocks, kThreads, measure.used(), args);
      reduce.partials = args.partials;
      reduce.blocks = blocks;
      reduce.slice = args.slice;
      reduce.bf16 = args.head.storage == Storage::bf16;
      reduce.loss = loss;
      device.launch(reduce_partials_kernel, (args.slice + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0,
                    reduce);
    }
  });
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
  Tensor loss = new_tensor(alpha, {}, compute_type(x));
  run_gradients(a, g, static_cast<float*>(loss.mutable_data_ptr()), x, device);
  return {loss, g.context, g.x, g.weights, g.biases};
}

}  // namespace fastcsm
