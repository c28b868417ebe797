// The MADE of a draw in a block, for its kSamples samples: each hidden unit once, when the variables up to its degree
// are known. Units are sorted by degree, so those of one degree follow each other and read a prefix of the layer below.
#pragma once

#include "common/draw_args.h"
#include "cuda/chain.h"

namespace fastcsm {

constexpr int kMaxTensors = 1536;

// Sizes, and the parameters of all models: of each the weights of its layers, then their biases.
struct NetworkArgs {
  int variables, context, layers, activation;
  bool residual;
  int width[kMaxMadeLayers];
  const int64_t *order, *degree[kMaxMadeLayers];
  const void* tensor[kMaxTensors];
};

// sums (count, kSamples) of W v + b for rows first .. of W (., inputs), of which the first `depth` columns are read, in
// the order of `columns` (null: as they lie); v is (depth, kSamples). done(row, sample, sum) gets each from one thread.
// Warps take four rows of W each, or where there are few rows share their columns. Ends with a barrier.
template <Precision P, class Done>
FASTCSM_INLINE void dot_products(float* partial, const void* weight, const void* bias, int64_t inputs, int first,
                                 int count, int depth, const int64_t* columns, const float* v, const Done& done) {
  constexpr bool kBf16 = P == Precision::bf16;
  constexpr int kGroup = kWarp / kSamples;
  constexpr int kUnroll = P == Precision::exact ? 1 : 2;  // as registers allow
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kWarps * kGroup) {
    const int left = (count - begin + kGroup - 1) / kGroup, groups = left < kWarps ? left : kWarps;
    const int slices = kWarps / groups, group = warp % groups, slice = warp / groups;
    const int row = begin + group * kGroup;
    float sum[kWarp] = {};  // (kGroup, kSamples)
    if (slice < slices) {
#pragma unroll kUnroll
      for (int j = slice * kWarp + lane; j < depth; j += slices * kWarp) {
        const float4* values = reinterpret_cast<const float4*>(v + j * kSamples);
        const float4 p = values[0], q = values[1];
        const int64_t column = columns ? columns[j] : j;
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const int64_t at = (first + row + u) * inputs + column;
          const float w = row + u < count ? read_parameter(weight, at, kBf16) : 0.f;
          float* s = sum + u * kSamples;
          s[0] = fmaf(w, p.x, s[0]), s[1] = fmaf(w, p.y, s[1]), s[2] = fmaf(w, p.z, s[2]), s[3] = fmaf(w, p.w, s[3]);
          s[4] = fmaf(w, q.x, s[4]), s[5] = fmaf(w, q.y, s[5]), s[6] = fmaf(w, q.z, s[6]), s[7] = fmaf(w, q.w, s[7]);
        }
      }
    }
    // Sums over the lanes: at each turn a lane keeps the half of its numbers that its bit says, so lane i ends with
    // i's.
#pragma unroll
    for (int turn = 0; turn < 5; ++turn) {
      const int half = kWarp / 2 >> turn;
      const bool upper = lane & half;
#pragma unroll
      for (int i = 0; i < kWarp / 2; ++i) {
        if (i >= half) break;
        const float kept = upper ? sum[half + i] : sum[i], given = upper ? sum[i] : sum[half + i];
        sum[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
      }
    }
    partial[threadIdx.x] = sum[0];
    __syncthreads();
    const int own = begin + warp * kGroup + lane / kSamples;
    if (warp < groups && own < count) {
      float total = read_parameter(bias, first + own, kBf16);
      for (int i = 0; i < slices; ++i) total += partial[(i * groups + warp) * kWarp + lane];
      done(first + own, lane % kSamples, total);
    }
    __syncthreads();
  }
}

// Values of variables and units, (., kSamples) each, in shared memory where they fit, else in the block's part of
// scratch memory.
struct NetworkMemory {
  float* partial;  // (kThreads)
  int* due;        // (2, layers): units with a degree up to k, for even and for odd k
  float* pool;     // value_count(): x in drawing order, the context, and of each model its layers and its stream

  __host__ __device__ NetworkMemory(const NetworkArgs& args, int pool_floats, SharedMemory& memory) {
    partial = memory.take<float>(kThreads);
    due = memory.take<int>(2 * args.layers);
    pool = memory.take<float>(pool_floats);
  }
};

inline int64_t model_values(const NetworkArgs& args) {
  int64_t units = args.residual ? args.width[0] : 0;
  for (int l = 0; l < args.layers; ++l) units += args.width[l];
  return units * kSamples;
}
inline int64_t value_count(const NetworkArgs& args, int64_t models) {
  return int64_t(args.variables + args.context) * kSamples + models * model_values(args);
}

template <Precision P>
class Network {
 public:
  FASTCSM_INLINE Network(const NetworkArgs& args, const NetworkMemory& memory, float* pool)
      : args_(args), m_(memory), pool_(pool) {
    for (int i = threadIdx.x; i < 2 * args.layers; i += kThreads) m_.due[i] = 0;
  }

  // (variables, kSamples), in drawing order, and (context, kSamples).
  FASTCSM_INLINE float* x() const { return pool_; }
  FASTCSM_INLINE float* context() const { return pool_ + args_.variables * kSamples; }

  // The units of degree k of model m, the first k variables being known. Barriers before and after are the caller's.
  FASTCSM_INLINE void finish_units(int m, int k) const {
    float *below = x(), *value = values(m), *stream = value + end_of_layers();
#pragma unroll 1
    for (int l = 0; l < args_.layers; ++l) {
      const int begin = due(l, k - 1), count = due(l, k) - begin;
      const int64_t inputs = l == 0 ? args_.variables : args_.width[l - 1];
      const bool adds = args_.residual && l % 2 == 0;
      dot_products<P>(m_.partial, weight(m, l), bias(m, l), inputs, begin, count, l == 0 ? k : due(l - 1, k),
                      l == 0 ? args_.order : nullptr, below, [&](int unit, int sample, float sum) {
                        const int at = unit * kSamples + sample;
                        if (adds && l > 0) sum += stream[at];
                        if (adds) stream[at] = sum;
                        with_activation(args_.activation, [&](auto code) {
                          float d, e;
                          activate<code.value>(sum, value[at], d, e);
                        });
                      });
      below = value;
      value += args_.width[l] * kSamples;
    }
  }

  // Counts what comes due at k + 1. A barrier must stand before and after.
  FASTCSM_INLINE void advance(int k) const {
    const int l = threadIdx.x;
    if (l >= args_.layers) return;
    int count = due(l, k);
    while (count < args_.width[l] && args_.degree[l][count] <= k + 1) ++count;
    m_.due[(k + 1) % 2 * args_.layers + l] = count;
  }

  // Model m's context of the variable, the k-th in order, its units up to degree k finished. Ends with a barrier.
  FASTCSM_INLINE void find_context(int m, int variable, int k) const {
    const int L = args_.layers, width = args_.width[L - 1], first = variable * args_.context;
    dot_products<P>(m_.partial, weight(m, L), bias(m, L), width, first, args_.context, due(L - 1, k), nullptr,
                    values(m) + end_of_layers() - width * kSamples,
                    [&](int row, int sample, float sum) { context()[(row - first) * kSamples + sample] = sum; });
  }

 private:
  FASTCSM_INLINE int due(int l, int k) const { return m_.due[(k & 1) * args_.layers + l]; }
  FASTCSM_INLINE const void* weight(int m, int l) const { return args_.tensor[m * 2 * (args_.layers + 1) + l]; }
  FASTCSM_INLINE const void* bias(int m, int l) const { return weight(m, args_.layers + 1 + l); }
  FASTCSM_INLINE int end_of_layers() const {
    int units = 0;
    for (int l = 0; l < args_.layers; ++l) units += args_.width[l];
    return units * kSamples;
  }
  FASTCSM_INLINE float* values(int m) const {
    return context() + args_.context * kSamples +
           int64_t(m) * (end_of_layers() + (args_.residual ? args_.width[0] * kSamples : 0));
  }

  const NetworkArgs& args_;
  NetworkMemory m_;
  float* pool_;
};

}  // namespace fastcsm
