// Langevin dynamics of kSamples rows in one block. Rows are the columns of the products: a warp computes 16 units of
// them, the units' weights being A and the rows' values B of its matrix instructions. So a tile is 8 rows, no more than
// the narrow side of an instruction, and the weights of the hidden product, W_2, stay in registers for the chain's
// life; those of deeper layers are in shared memory. Widths are padded to kUnits with zero weights, which add nothing.
//
// A thread holds the sums of two units for two rows, and the state of these rows, which all threads that share them
// advance alike: what travels through shared memory in a step is z_k, and the warps' shares of s.
#pragma once

#include "cuda/head.h"
#include "cuda/preconditioning.h"
#include "common/philox.h"

namespace fastcsm {

constexpr int kSamples = 8;
constexpr int kWarps = kThreads / kWarp;
static_assert(kWarps * 16 == kUnits);

// x <- x + drift s(c, x) + diffusion z; feature is the stage's own context feature.
struct Stage {
  float drift, diffusion, feature;
};

// Of a launch: (e_i / 2) k_i, sqrt(e_i) and the feature of each stage, and what follows the last one.
constexpr int kMaxStages = 512;
struct Dynamics {
  int stages, steps;
  bool stage_feature;
  uint32_t first_step;
  uint64_t seed;
  Stage stage[kMaxStages + 1];
};

FASTCSM_INLINE float standard_normal(uint64_t seed, int64_t sample, int64_t dimension, uint32_t step) {
  uint32_t w0, w1;
  noise_words<kNormals, 1>(seed, &sample, &dimension, step, 1, &w0, &w1);
  const float u1 = fmaxf(float(w0), 0.5f) * 0x1p-32f, half_turns = float(w1 >> 8) * 0x1p-23f;
  return sqrtf(-2.f * logf(u1)) * cospif(half_turns);
}

// x as the head reads it and as it is stored.
template <Precision P>
FASTCSM_INLINE float as_stored(float x) {
  return from_storage(to_storage<Element<P>>(x));
}

// What a stage does to the thread's two rows i: from a state x the number that the head reads, and from its output s
// and the noise z the next state.
template <Precision P>
struct PlainRows {
  float drift, diffusion;

  FASTCSM_INLINE explicit PlainRows(const Stage& stage) : drift(stage.drift), diffusion(stage.diffusion) {}
  FASTCSM_INLINE float read(int, float x) const { return as_stored<P>(x); }
  FASTCSM_INLINE float next(int, float x, float s, float z) const { return x + fmaf(diffusion, z, drift * s); }
};

// Of a preconditioned head x is y, in units of tau: v = kappa y, and s = kappa (rho r - v) with the head's output r.
// The stage's feature is ln(sigma), its step sizes are in the rows' own units, of which a row's -ln(tau) is `offset`.
template <Precision P>
struct PreconditionedRows {
  float squash, narrow[2], drift[2], pull[2], diffusion[2];

  FASTCSM_INLINE PreconditionedRows(const Stage& stage, float squash, const float (&offset)[2]) : squash(squash) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const double in_tau = exp(double(offset[i])), own = exp(double(offset[i]) + double(stage.feature));
      const double kappa = 1 / sqrt(1 + own * own), towards = stage.drift * in_tau * in_tau * kappa;
      narrow[i] = float(kappa / squash);
      drift[i] = float(towards / own), pull[i] = float(towards * kappa);
      diffusion[i] = float(stage.diffusion * in_tau);
    }
  }
  FASTCSM_INLINE float read(int i, float x) const { return as_stored<P>(squash * asinh_of<P>(narrow[i] * x)); }
  FASTCSM_INLINE float next(int i, float x, float r, float z) const {
    return x + fmaf(diffusion[i], z, fmaf(drift[i], r, -pull[i] * x));
  }
};

// The A of a warp for one hidden layer: 16 of its units by kUnits inputs, in precision P.
template <Precision P>
struct ResidentWeights {
  static constexpr int kStep = kDepth<P>, kSteps = kUnits / kStep, kTwo = kTogether<P>;
  static constexpr bool kExact = P == Precision::exact;
  using Weights = std::conditional_t<kExact, SplitA, FragmentA<P>>;
  Weights weights[kSteps];

  // Of w (rows, columns), the rows first + lane / 4 and eight further on.
  FASTCSM_INLINE void load(const void* w, int rows, int columns, int first, int lane) {
    constexpr bool kBf16 = P == Precision::bf16;
    const auto at = [&](int row, int column) {
      return row < rows && column < columns ? read_parameter(w, int64_t(row) * columns + column, kBf16) : 0.f;
    };
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      FragmentA<P> a;
#pragma unroll
      for (int i = 0; i < int(sizeof(a) / 4); ++i) {
        const int row = first + lane / 4 + i % 2 * 8, column = k * kStep + i / 2 * (kBf16 ? 8 : 4);
        if constexpr (kBf16) {
          const int pair = column + lane % 4 * 2;
          a.r[i] = pack_bf16(at(row, pair), at(row, pair + 1));
        } else {
          a.r[i] = __float_as_uint(to_element<P>(at(row, column + lane % 4)));
        }
      }
      weights[k] = Weights(a);
    }
  }

  // c += W z for rows of z (kSamples, stride). Sums are split into independent chains of products.
  FASTCSM_INLINE void multiply(Accumulator& c, const Element<P>* z, int stride, int lane) const {
    constexpr int kChains = 4;
    Accumulator sum[kChains] = {}, rest[2] = {};
    sum[0] = c;
#pragma unroll
    for (int k = 0; k < kSteps; k += kTwo) {
      FragmentB<P> b[kTwo];
      load_b_deep(b, z + k * kStep, stride, lane);
#pragma unroll
      for (int i = 0; i < kTwo; ++i) {
        if constexpr (kExact) {
          const SplitB parts(b[i]);
          multiply_add_first(sum[k % kChains], weights[k], parts);
          multiply_add_rest(rest[k % 2], weights[k], parts);
        } else {
          multiply_add(sum[(k + i) % kChains], weights[k + i], b[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float more = sum[2].r[i] + sum[3].r[i];
      if constexpr (kExact) more += rest[0].r[i] + rest[1].r[i];
      c.r[i] = sum[0].r[i] + sum[1].r[i] + more;
    }
  }
};

// What a chain keeps in the block's memory; head gives the sizes.
template <Precision P>
struct ChainMemory {
  using T = Element<P>;
  static constexpr int kStride = padded_stride<T>(kUnits);
  static constexpr int kStep = kTogether<P> * kDepth<P>;  // columns of B taken at once
  static constexpr int kAhead = kThreads / kSamples;      // steps whose noise is drawn together

  int waves, wave_stride;  // 2E, padded to whole products
  float* base;             // (kUnits, kSamples): the context's share of a_1, bias included
  T* hidden;               // (K - 2, kUnits, kUnits): W_3 ..
  T* wave_weight;          // (kUnits, waves): [W_sin, W_cos]
  T* z;                    // (kSamples, kUnits), of layers in turn; a second where three or more need it
  T* wave;                 // (kSamples, waves): [sin(w x), cos(w x)]
  float* bias;             // (K - 1, kUnits): b_2 ..
  float* frequency;        // (E)
  float* shares;           // (2, kSamples, kWarps): of s, in steps in turn
  float* noise;            // (2, kAhead, kSamples)

  __host__ __device__ ChainMemory(const HeadArgs& head, SharedMemory& memory)
      : waves(round_up(2 * int(head.frequencies), kStep)), wave_stride(padded_stride<T>(waves)) {
    const int layers = int(head.layers);
    base = memory.take<float>(kUnits * kSamples);
    hidden = memory.take<T>(layers > 2 ? (layers - 2) * kUnits * kStride : 0);
    wave_weight = memory.take<T>(kUnits * wave_stride);
    z = memory.take<T>((layers > 2 ? 2 : 1) * kSamples * kStride);
    wave = memory.take<T>(kSamples * wave_stride);
    bias = memory.take<float>((layers - 1) * kUnits);
    frequency = memory.take<float>(int(head.frequencies));
    shares = memory.take<float>(2 * kSamples * kWarps);
    noise = memory.take<float>(2 * kAhead * kSamples);
  }
};

template <Precision P>
class Chain {
  using Memory = ChainMemory<P>;
  using T = Element<P>;
  static constexpr bool kBf16 = P == Precision::bf16;
  static constexpr int kStride = Memory::kStride, kStep = Memory::kStep, kAhead = Memory::kAhead;

 public:
  FASTCSM_INLINE explicit Chain(const Memory& memory)
      : m_(memory), warp_(threadIdx.x / kWarp), lane_(threadIdx.x % kWarp) {}

  // Takes the head's parameters. A barrier must stand before, where the memory was in use, and must follow.
  FASTCSM_INLINE void load(const HeadArgs& head) {
    layers_ = int(head.layers);
    activation_ = head.activation;
    frequencies_ = int(head.frequencies);
    const int width = int(head.width[0]), features = int(head.features()), given = int(head.context);
    const int inputs = given + features, last = int(head.width[layers_ - 1]);
    const auto first_layer = [&](int unit, int column) {
      return unit < width ? read_parameter(head.weight[0], int64_t(unit) * inputs + column, kBf16) : 0.f;
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int unit = this->unit(2 * i);
      x_weight_[i] = first_layer(unit, given);
      stage_weight_[i] = given > 0 ? first_layer(unit, given - 1) : 0.f;
      output_[i] = unit < last ? read_parameter(head.weight[layers_], unit, kBf16) : 0.f;
    }
    output_bias_ = read_parameter(head.bias[layers_], 0, kBf16);
    if (layers_ > 1) resident_.load(head.weight[1], int(head.width[1]), width, warp_ * 16, lane_);
    for (int i = threadIdx.x; i < kUnits * m_.waves; i += kThreads) {
      const int unit = i / m_.waves, column = i % m_.waves;
      const float w = column < features - 1 ? first_layer(unit, given + 1 + column) : 0.f;
      m_.wave_weight[unit * m_.wave_stride + column] = to_element<P>(w);
      if (unit < kSamples) m_.wave[unit * m_.wave_stride + column] = to_element<P>(0.f);
    }
    for (int i = threadIdx.x; i < frequencies_; i += kThreads)
      m_.frequency[i] = read_parameter(head.frequency, i, kBf16);
    for (int i = threadIdx.x; i < kUnits * kSamples; i += kThreads) m_.base[i] = 0.f;
    for (int k = 1; k < layers_; ++k) {
      const int in = int(head.width[k - 1]), out = int(head.width[k]);
      for (int i = threadIdx.x; i < kUnits; i += kThreads) {
        m_.bias[(k - 1) * kUnits + i] = i < out ? read_parameter(head.bias[k], i, kBf16) : 0.f;
      }
      for (int i = threadIdx.x; k > 1 && i < kUnits * kUnits; i += kThreads) {
        const int unit = i / kUnits, column = i % kUnits;
        const bool inside = unit < out && column < in;
        const float w = inside ? read_parameter(head.weight[k], int64_t(unit) * in + column, kBf16) : 0.f;
        m_.hidden[((k - 2) * kUnits + unit) * kStride + column] = to_element<P>(w);
      }
    }
  }

  // Rows whose noise is that of (samples, dimensions) from step first on; the thread names those of its noise_row().
  FASTCSM_INLINE void begin(uint64_t seed, int64_t sample, uint32_t dimension, uint32_t first) {
    seed_ = seed, sample_ = sample, dimension_ = dimension, first_ = first;
    count_ = 0;
  }
  FASTCSM_INLINE int noise_row() const { return threadIdx.x % kSamples; }

  // The draw from N(0, 1) that a chain starts from. Contains a barrier.
  FASTCSM_INLINE void start() {
    draw_noise();
    __syncthreads();
    const float2 z = noise();
    x[0] = z.x, x[1] = z.y;
    ++count_;
  }

  // `steps` steps of a stage on the rows whose base is set, barriers included.
  template <class Rows>
  FASTCSM_INLINE void run(const Stage& stage, const Rows& rows, int steps, bool stage_feature) {
    Accumulator share;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      share.r[i] = m_.base[unit(i) * kSamples + row(i)];
      if (stage_feature) share.r[i] = fmaf(stage.feature, stage_weight_[i / 2], share.r[i]);
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      if (count_ % kAhead == 0) draw_noise();
      float s[2];
      score(share, {rows.read(0, x[0]), rows.read(1, x[1])}, s);
      const float2 z = noise();
      x[0] = rows.next(0, x[0], s[0], z.x);
      x[1] = rows.next(1, x[1], s[1], z.y);
      ++count_;
    }
  }

  // The state of rows row(0) and row(1).
  float x[2];
  FASTCSM_INLINE void round() { x[0] = as_stored<P>(x[0]), x[1] = as_stored<P>(x[1]); }

  // The unit and the row that element i of the thread's sums belongs to.
  FASTCSM_INLINE int unit(int i) const { return warp_ * 16 + lane_ / 4 + i / 2 * 8; }
  FASTCSM_INLINE int row(int i) const { return lane_ % 4 * 2 + i % 2; }

 private:
  // The noise of kAhead steps from this one on, one number a thread. It is read after a barrier; that of the steps
  // before is left alone.
  FASTCSM_INLINE void draw_noise() {
    const uint32_t step = first_ + count_ + threadIdx.x / kSamples;
    m_.noise[count_ / kAhead % 2 * kThreads + threadIdx.x] = standard_normal(seed_, sample_, dimension_, step);
  }
  FASTCSM_INLINE float2 noise() const {
    return *reinterpret_cast<const float2*>(m_.noise + count_ % (2 * kAhead) * kSamples + row(0));
  }

  // The head's output at v of the thread's rows, share being the part of a_1 without v. Holds one barrier a layer, and
  // one more with frequencies.
  FASTCSM_INLINE void score(const Accumulator& share, const float (&v)[2], float (&s)[2]) {
    Accumulator a;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.r[i] = fmaf(x_weight_[i / 2], v[i % 2], share.r[i]);
    if (frequencies_ > 0) {
      store_waves(v);
      __syncthreads();
      multiply(a, m_.wave_weight, m_.wave_stride, m_.wave, m_.wave_stride, m_.waves);
    }
#pragma unroll 1
    for (int k = 1;; ++k) {
      with_activation(activation_, [&](auto code) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a.r[i] = activation_value<P, code.value>(a.r[i]);
        }
      });
      if (k == layers_) break;
      T* z = m_.z + (k - 1) % 2 * kSamples * kStride;
#pragma unroll
      for (int i = 0; i < 4; ++i) z[row(i) * kStride + unit(i)] = to_element<P>(a.r[i]);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) a.r[i] = m_.bias[(k - 1) * kUnits + unit(i)];
      if (k == 1) {
        resident_.multiply(a, z, kStride, lane_);
      } else {
        multiply(a, m_.hidden + (k - 2) * kUnits * kStride, kStride, z, kStride, kUnits);
      }
    }
    float* shares = m_.shares + count_ % 2 * kSamples * kWarps;
    // Lanes with bit 2 go on with the sum of the second row, the others with that of the first.
    const float first = fmaf(output_[0], a.r[0], output_[1] * a.r[2]);
    const float second = fmaf(output_[0], a.r[1], output_[1] * a.r[3]);
    const int own = lane_ / 4 % 2;
    float sum = own ? second : first;
    sum += __shfl_xor_sync(0xffffffffu, own ? first : second, 4);
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    if (lane_ < 8) shares[row(own) * kWarps + warp_] = sum;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4* of_row = reinterpret_cast<const float4*>(shares + row(i) * kWarps);
      const float4 p = of_row[0], q = of_row[1];
      s[i] = ((p.x + p.y) + (p.z + p.w)) + ((q.x + q.y) + (q.z + q.w)) + output_bias_;
    }
  }

  // sin(w x), cos(w x) of the rows, to wave (kSamples, 2E); every thread has one of its two rows and every 32nd w.
  FASTCSM_INLINE void store_waves(const float (&v)[2]) {
    const int own = lane_ / 4 % 2;
    const float value = own ? v[1] : v[0];
    T* wave_row = m_.wave + row(own) * m_.wave_stride;
#pragma unroll 1
    for (int j = threadIdx.x / kSamples; j < frequencies_; j += kThreads / kSamples) {
      float sine, cosine;
      wave(m_.frequency[j], value, sine, cosine);
      wave_row[j] = to_element<P>(sine);
      wave_row[frequencies_ + j] = to_element<P>(cosine);
    }
  }

  // c += W b for the warp's rows of w (kUnits, depth) and rows b (kSamples, depth), both in shared memory.
  FASTCSM_INLINE void multiply(Accumulator& c, const T* w, int w_stride, const T* b, int b_stride, int depth) const {
    Accumulator other{};
    w += warp_ * 16 * w_stride;
#pragma unroll 2
    for (int k = 0; k < depth; k += kStep) {
      FragmentA<P> a[kTogether<P>];
      FragmentB<P> two[kTogether<P>];
#pragma unroll
      for (int i = 0; i < kTogether<P>; ++i) load_a(a[i], w + k + i * kDepth<P>, w_stride, lane_);
      load_b_deep(two, b + k, b_stride, lane_);
#pragma unroll
      for (int i = 0; i < kTogether<P>; ++i) {
        multiply_add(i == 0 ? c : other, OperandA<P>(a[i]), OperandB<P>(two[i]));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) c.r[i] += other.r[i];
  }

  Memory m_;
  int warp_, lane_;
  int layers_, activation_, frequencies_;
  ResidentWeights<P> resident_;
  float x_weight_[2], stage_weight_[2], output_[2], output_bias_;
  uint64_t seed_;
  int64_t sample_;
  uint32_t dimension_, first_, count_;
};

}  // namespace fastcsm
