// x <- x + (e_i / 2) k_i s(c, x) + sqrt(e_i) z for every stage and step in one launch, of rows whose context is given,
// and of whole samples drawn variable by variable.
//
// A block owns kSamples rows for the launch. chain.h has the dynamics; in a draw, network.h finishes the units of the
// MADE as their degrees come due, between the chains of one variable and the next.
//
// What a step costs a warp, counted in the code for sm_90 (two hidden layers, silu, no frequencies): 193 instructions
// in bfloat16 and 207 with tf32, among them 8 and 16 matrix instructions, and in float32 48; two barriers. A scheduler
// has two warps. Frequencies add a barrier, and up to 87 instructions for 16 of them in bfloat16. Noise is drawn for 32
// steps at once, one number a thread, which makes 4 instructions a step. A preconditioned head takes some 40 more, and
// 3 % more cycles. From a state to the next the longest chain is two activations (some 100 cycles each), the load and
// two to eight dependent matrix instructions (100 to 300), three shuffles (80), and two exchanges through shared memory
// (150): an estimate of 600 to 900 cycles, half a microsecond or less, that no measurement has confirmed.
//
// Between two chains a warp issues some 2500 instructions for 784 variables, a MADE of 2 x 1024 and 32 features of
// context, against 43000 for 200 steps: reading the next variable's weights ahead would gain a few hundredths at most.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/draw_args.h"
#include "common/ops.h"
#include "cuda/chain.h"
#include "cuda/launch.h"
#include "cuda/network.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

// Two blocks share a multiprocessor where their registers and its memory allow.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <Precision P>
constexpr int kBlocks = 1;
#else
template <Precision P>
constexpr int kBlocks = P == Precision::bf16 ? 2 : 1;
#endif

struct RowsArgs {
  HeadArgs head;
  Dynamics dynamics;
  int64_t rows;
  const void *context, *x;
  const int64_t *samples, *dimensions;
  void* out;
  float squash;    // u0 of a preconditioned head
  float* scratch;  // (blocks, given, kSamples) contexts; null: in shared memory
};

struct DrawnArgs {
  HeadArgs heads[kMaxModels];
  NetworkArgs network;
  Dynamics dynamics;
  int64_t rows, pool;
  int models, first, last;
  const int64_t* samples;
  void *x, *clean;
  float* scratch;  // (blocks, pool) values; null: in shared memory
};
// What a launch may bring along.
static_assert(sizeof(DrawnArgs) <= 32764);

// The context's share of a_1 of a chain, from context (depth, kSamples).
template <Precision P>
FASTCSM_INLINE void set_base(float* base, float* partial, const HeadArgs& head, int depth, const float* context) {
  dot_products<P>(partial, head.weight[0], head.bias[0], head.context + head.features(), 0, int(head.width[0]), depth,
                  nullptr, context, [&](int unit, int row, float sum) { base[unit * kSamples + row] = sum; });
}

template <Precision P>
struct RowsMemory {
  ChainMemory<P> chain;
  float *partial, *context;

  __host__ __device__ RowsMemory(const HeadArgs& head, int context_floats, SharedMemory& memory)
      : chain(head, memory), partial(memory.take<float>(kThreads)), context(memory.take<float>(context_floats)) {}
};

template <Precision P, bool kPreconditioned>
__global__ void __launch_bounds__(kThreads, kBlocks<P>) langevin_kernel(const __grid_constant__ RowsArgs args) {
  using S = Element<P>;
  constexpr bool kBf16 = P == Precision::bf16;
  const HeadArgs& head = args.head;
  const int given = int(head.context) - (kPreconditioned ? 0 : args.dynamics.stage_feature);
  SharedMemory memory(block_memory());
  const RowsMemory<P> m(head, args.scratch ? 0 : given * kSamples, memory);
  float* context = args.scratch ? args.scratch + int64_t(blockIdx.x) * given * kSamples : m.context;
  const int64_t begin = int64_t(blockIdx.x) * kSamples;
  const auto inside = [&](int row) { return begin + row < args.rows; };
  for (int i = threadIdx.x; i < given * kSamples; i += kThreads) {
    const int row = i % kSamples, column = i / kSamples;
    context[i] = inside(row) ? read_parameter(args.context, (begin + row) * given + column, kBf16) : 0.f;
  }
  Chain<P> chain(m.chain);
  chain.load(head);
  __syncthreads();
  set_base<P>(m.chain.base, m.partial, head, given, context);
  const int row = chain.noise_row();
  chain.begin(args.dynamics.seed, inside(row) ? args.samples[begin + row] : 0,
              inside(row) ? args.dimensions[begin + row] : 0, args.dynamics.first_step);
  for (int i = 0; i < 2; ++i) {
    chain.x[i] = inside(chain.row(i)) ? from_storage(static_cast<const S*>(args.x)[begin + chain.row(i)]) : 0.f;
  }
#pragma unroll 1
  for (int i = 0; i < args.dynamics.stages; ++i) {
    const Stage& stage = args.dynamics.stage[i];
    if constexpr (kPreconditioned) {
      const float* offset = context + (given - 1) * kSamples;
      const PreconditionedRows<P> rows(stage, args.squash, {offset[chain.row(0)], offset[chain.row(1)]});
      chain.run(stage, rows, args.dynamics.steps, true);
    } else {
      chain.run(stage, PlainRows<P>(stage), args.dynamics.steps, args.dynamics.stage_feature);
    }
  }
  if (threadIdx.x < kSamples / 2) {
    for (int i = 0; i < 2; ++i) {
      if (inside(chain.row(i))) static_cast<S*>(args.out)[begin + chain.row(i)] = to_storage<S>(chain.x[i]);
    }
  }
}

template <Precision P>
struct DrawMemory {
  ChainMemory<P> chain;
  NetworkMemory network;

  __host__ __device__ DrawMemory(const HeadArgs& head, const NetworkArgs& args, int pool_floats, SharedMemory& memory)
      : chain(head, memory), network(args, pool_floats, memory) {}
};

template <Precision P>
__global__ void __launch_bounds__(kThreads, kBlocks<P>) langevin_draw_kernel(const __grid_constant__ DrawnArgs args) {
  using S = Element<P>;
  const Dynamics& dynamics = args.dynamics;
  SharedMemory memory(block_memory());
  const DrawMemory<P> m(args.heads[0], args.network, args.scratch ? 0 : int(args.pool), memory);
  const Network<P> network(args.network, m.network,
                           args.scratch ? args.scratch + blockIdx.x * args.pool : m.network.pool);
  const int64_t begin = int64_t(blockIdx.x) * kSamples;
  const auto inside = [&](int row) { return begin + row < args.rows; };
  Chain<P> chain(m.chain);
  const int64_t sample = inside(chain.noise_row()) ? args.samples[begin + chain.noise_row()] : 0;
  int loaded = -1;
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < args.last; ++k) {
    const int variable = int(args.network.order[k]);
    // Read anew where it is needed: registers are full.
    const auto place = [&](int row) { return (begin + row) * args.network.variables + args.network.order[k]; };
#pragma unroll 1
    for (int model = 0; model < args.models; ++model) network.finish_units(model, k);
    __syncthreads();
    network.advance(k);
    if (k < args.first) {
      if (threadIdx.x < kSamples) {
        const int row = threadIdx.x;
        const float given = inside(row) ? from_storage(static_cast<const S*>(args.x)[place(row)]) : 0.f;
        network.x()[k * kSamples + row] = given;
      }
      __syncthreads();
      continue;
    }
    chain.begin(dynamics.seed, sample, variable, 0);
#pragma unroll 1
    for (int model = 0; model < args.models; ++model) {
      const HeadArgs& head = args.heads[model];
      network.find_context(model, variable, k);
      if (model != loaded) {
        __syncthreads();
        chain.load(head);  // to be read after the barriers in set_base
        loaded = model;
      }
      set_base<P>(m.chain.base, m.network.partial, head, args.network.context, network.context());
      if (model == 0) {
        chain.start();
        chain.round();
      }
      const int from = args.models == 1 ? 0 : model, to = args.models == 1 ? dynamics.stages : model + 1;
      const bool last = model + 1 == args.models;
      // After its stages a model hands over the state, rounded; a step without noise leads on to the denoised value.
#pragma unroll 1
      for (int i = from; i <= to; ++i) {
        if (i == to) {
          chain.round();
          if (last && threadIdx.x < kSamples / 2) {
            for (int j = 0; j < 2; ++j) {
              const int row = chain.row(j);
              network.x()[k * kSamples + row] = chain.x[j];
              if (inside(row)) static_cast<S*>(args.x)[place(row)] = to_storage<S>(chain.x[j]);
            }
          }
          if (!last || !args.clean) break;
        }
        const Stage& stage = dynamics.stage[i];
        chain.run(stage, PlainRows<P>(stage), i == to ? 1 : dynamics.steps, dynamics.stage_feature);
      }
    }
    if (args.clean && threadIdx.x < kSamples / 2) {
      for (int j = 0; j < 2; ++j) {
        const int row = chain.row(j);
        if (inside(row)) static_cast<S*>(args.clean)[place(row)] = to_storage<S>(chain.x[j]);
      }
    }
    __syncthreads();
  }
}

// Stages as the kernels take them, and after them the step to the denoised value.
template <class Args>
Dynamics dynamics_of(const Args& a, uint32_t first_step, double denoise) {
  if (a.stages > kMaxStages) {
    throw std::invalid_argument("fastcsm: step_sizes has " + std::to_string(a.stages) + " entries, expected at most " +
                                std::to_string(kMaxStages));
  }
  Dynamics d{};
  d.stages = int(a.stages);
  d.steps = int(a.steps);
  d.stage_feature = a.stage_features != nullptr;
  d.first_step = first_step;
  d.seed = a.seed;
  for (int i = 0; i < d.stages; ++i) {
    d.stage[i] = {float(0.5 * a.step_sizes[i] * a.score_scales[i]), float(std::sqrt(a.step_sizes[i])),
                  d.stage_feature ? float(a.stage_features[i]) : 0.f};
  }
  if (d.stages > 0) d.stage[d.stages] = {float(denoise), 0.f, d.stage[d.stages - 1].feature};
  return d;
}

int64_t blocks_of(int64_t rows) { return (rows + kSamples - 1) / kSamples; }

// Bytes of shared memory for a kernel, given `floats` numbers that would rather be there: with them if they fit, or
// else without, then in the tensor `scratch` gets.
template <class Bytes>
int choose_memory(const Bytes& bytes, int64_t floats, int64_t blocks, const Tensor& like, Tensor& scratch) {
  const int64_t most = block_limit(), without = bytes(0);
  if (floats < most && bytes(int(floats)) <= most) return bytes(int(floats));
  if (without > most) does_not_fit(without);
  scratch = new_tensor(like, {blocks * floats}, torch::headeronly::ScalarType::Float);
  return int(without);
}

template <Precision P, bool kPreconditioned>
void run_rows(RowsArgs& args, const Tensor& x, const Device& device) {
  const int64_t blocks = blocks_of(args.rows);
  const int64_t given = args.head.context - (kPreconditioned ? 0 : args.dynamics.stage_feature);
  const auto bytes = [&](int floats) {
    SharedMemory measure;
    RowsMemory<P>(args.head, floats, measure);
    return measure.used();
  };
  Tensor scratch;
  const int used = choose_memory(bytes, given * kSamples, blocks, x, scratch);
  args.scratch = scratch.defined() ? static_cast<float*>(scratch.mutable_data_ptr()) : nullptr;
  device.launch(langevin_kernel<P, kPreconditioned>, blocks, kThreads, used, args);
}

template <Precision P>
void run_draw(DrawnArgs& args, const Tensor& x, const Device& device) {
  const int64_t blocks = blocks_of(args.rows);
  args.pool = value_count(args.network, args.models);
  const auto bytes = [&](int floats) {
    SharedMemory measure;
    DrawMemory<P>(args.heads[0], args.network, floats, measure);
    return measure.used();
  };
  Tensor scratch;
  const int used = choose_memory(bytes, args.pool, blocks, x, scratch);
  args.scratch = scratch.defined() ? static_cast<float*>(scratch.mutable_data_ptr()) : nullptr;
  device.launch(langevin_draw_kernel<P>, blocks, kThreads, used, args);
}

NetworkArgs network_of(const DrawArgs& a) {
  NetworkArgs n{};
  const int64_t tensors = a.models * 2 * (a.layers + 1);
  if (tensors > kMaxTensors) {
    throw std::invalid_argument("fastcsm: made_weights and made_biases hold " + std::to_string(tensors) +
                                " tensors, expected at most " + std::to_string(kMaxTensors));
  }
  n.variables = int(a.variables), n.context = int(a.context), n.layers = int(a.layers);
  n.activation = a.activation, n.residual = a.residual;
  n.order = a.order;
  std::copy(a.degree, a.degree + a.layers, n.degree);
  std::copy(a.width, a.width + a.layers, n.width);
  const void** next = n.tensor;
  for (int64_t m = 0; m < a.models; ++m) {
    next = std::copy(a.weight[m], a.weight[m] + a.layers + 1, next);
    next = std::copy(a.bias[m], a.bias[m] + a.layers + 1, next);
  }
  return n;
}

}  // namespace

int64_t langevin_bytes(const HeadArgs& head) {
  int64_t bytes = 0;
  with_precision(head, [&](auto precision) {
    SharedMemory measure;
    RowsMemory<precision.value>(head, 0, measure);
    bytes = measure.used();
  });
  return bytes;
}

Tensor langevin(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
                std::vector<double> step_sizes, std::vector<double> score_scales, std::vector<double> stage_features,
                int64_t steps, int64_t seed, Tensor samples, Tensor dimensions, int64_t first_step, double squash,
                bool reduced) {
  const LangevinArgs a = langevin_args(context, x, weights, biases, frequencies, activation, step_sizes, score_scales,
                                       stage_features, steps, seed, samples, dimensions, first_step, squash, reduced);
  const Device device(x);
  Tensor out = new_like(x);
  if (a.rows == 0) return out;
  if (squash > 0) std::fill(score_scales.begin(), score_scales.end(), 1.);
  RowsArgs args{a.head,        dynamics_of(a, uint32_t(first_step), 0),
                a.rows,        a.context,
                a.x,           a.samples,
                a.dimensions,  out.mutable_data_ptr(),
                float(squash), nullptr};
  with_precision(a.head, [&](auto precision) {
    if (squash > 0) {
      run_rows<precision.value, true>(args, x, device);
    } else {
      run_rows<precision.value, false>(args, x, device);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> langevin_draw(Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                         int64_t activation, Tensors made_weights, Tensors made_biases, Tensors degrees,
                                         Tensor order, int64_t made_activation, bool residual,
                                         std::vector<double> step_sizes, std::vector<double> score_scales,
                                         std::vector<double> stage_features, int64_t steps, int64_t seed,
                                         Tensor samples, int64_t first, int64_t last, double denoise, bool reduced) {
  const Device device(x);
  Draw draw(x, weights, biases, frequencies, activation, made_weights, made_biases, degrees, order, made_activation,
            residual, !stage_features.empty(), seed, samples, first, last, denoise != 0, reduced);
  draw.set_stages(step_sizes, score_scales, stage_features, steps, denoise);
  const DrawArgs& a = draw.args;
  if (a.rows == 0 || first == last) return draw.results();
  DrawnArgs args{};
  std::copy(a.heads, a.heads + a.models, args.heads);
  args.network = network_of(a);
  args.dynamics = dynamics_of(a, 0, a.denoise);
  args.rows = a.rows, args.models = int(a.models), args.first = int(first), args.last = int(last);
  args.samples = a.samples;
  args.x = a.x, args.clean = a.clean;
  with_precision(a.heads[0], [&](auto precision) { run_draw<precision.value>(args, x, device); });
  return draw.results();
}

}  // namespace fastcsm
