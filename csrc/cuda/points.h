// The score head at 16 points a warp, each warp on its own: no barrier of the block stands in an evaluation, so that
// warps run through loops of different lengths. Points are the rows of the products' fragments. The parameters are in
// the block's shared memory for its life; the context's share of the first layer is computed once for the rows that the
// points belong to.
//
// Activations stay in registers from layer to layer: the accumulators of a product, 16 x 8 each, are the left operand
// of the next. In bfloat16 two of them side by side have its layout as they are; a tf32 operand takes columns 0 2 4 6 1
// 3 5 7 of one for its own 0 .. 7, and the weights' columns lie in memory in that order. Columns of a layer come in
// chunks: those of the last layer are reduced to s at once, those of a layer between wait in memory, each lane's own
// words, until the operands they are to replace are used up.
//
// An operand of sines and cosines has those of the same kHalf frequencies side by side, so that both of an angle are
// one lane's, and each is computed once in the warp. They too wait in the lanes' words, for each chunk to read.
#pragma once

#include "cuda/activations.h"
#include "cuda/head.h"

namespace fastcsm {

constexpr int kPoints = 16;

// The parameters, which all warps share, and each warp's part. kOneRow: a warp's points are of one row.
template <Precision P, bool kOneRow, bool kTangent>
struct PointsMemory {
  using T = Element<P>;
  static constexpr int kStride = padded_stride<T>(kUnits);
  static constexpr int kHalf = 16 / int(sizeof(T));  // frequencies whose sines lie together, as their cosines do
  static constexpr int kBase = kOneRow ? kUnits : kUnits * kPoints;

  int context, context_stride;  // columns of W_c, padded to whole products
  int waves, wave_stride;       // columns of [W_sin, W_cos], padded likewise
  int words;                    // of operands a warp keeps between layers
  float* first;                 // (3, kUnits): w_x, the weights of the last context feature, b_1
  float* output;                // (kUnits + 1): w_o, b_o
  T* hidden;                    // (K - 1, kUnits, kUnits): W_2 ..
  float* bias;                  // (K - 1, kUnits): b_2 ..
  float* base;                  // (warps, kBase): W_c c + b_1
  T* given;                     // (kUnits, context): W_c
  T* wave;                      // (kUnits, waves)
  float* frequency;             // (waves / 2)
  uint32_t* kept;               // (warps, words)

  __host__ __device__ PointsMemory(const HeadArgs& head, int warps, SharedMemory& memory)
      : context(round_up(int(head.context), kDepth<P>)),
        context_stride(padded_stride<T>(context)),
        waves(2 * round_up(int(head.frequencies), kDepth<P> / 2)),
        wave_stride(padded_stride<T>(waves)),
        words((head.layers > 2 && waves < kUnits ? kUnits : waves) * kPoints * int(sizeof(T)) / 4 *
              (kTangent ? 2 : 1)) {
    // What depends on nothing comes first, so that its place is known.
    const int between = int(head.layers) - 1;
    first = memory.take<float>(3 * kUnits);
    output = memory.take<float>(kUnits + 1);
    hidden = memory.take<T>(between * kUnits * kStride);
    bias = memory.take<float>(between * kUnits);
    base = memory.take<float>(warps * kBase);
    given = memory.take<T>(kUnits * context_stride);
    wave = memory.take<T>(kUnits * wave_stride);
    frequency = memory.take<float>(waves / 2);
    kept = memory.take<uint32_t>(warps * words);
  }

  // Fills the parameters; a barrier must follow.
  FASTCSM_INLINE void load(const HeadArgs& head) const {
    constexpr bool kBf16 = P == Precision::bf16;
    const int C = int(head.context), E = int(head.frequencies), inputs = C + 1 + 2 * E;
    const int layers = int(head.layers), width = int(head.width[0]), last = int(head.width[layers - 1]);
    const int thread = threadIdx.x, threads = blockDim.x;
    const auto first_layer = [&](int unit, int column) {
      return unit < width ? read_parameter(head.weight[0], unit * inputs + column, kBf16) : 0.f;
    };
    for (int i = thread; i < kUnits * context; i += threads) {
      const int unit = i / context, column = i % context;
      given[unit * context_stride + column] = to_element<P>(column < C ? first_layer(unit, column) : 0.f);
    }
    for (int i = thread; i < kUnits * waves; i += threads) {
      const int unit = i / waves, column = i % waves, part = column / kHalf % 2;  // 0: sines, 1: cosines
      const int e = column / (2 * kHalf) * kHalf + column % kHalf;
      const float w = e < E ? first_layer(unit, C + 1 + part * E + e) : 0.f;
      wave[unit * wave_stride + column] = to_element<P>(w);
    }
    for (int i = thread; i < waves / 2; i += threads) {
      frequency[i] = i < E ? read_parameter(head.frequency, i, kBf16) : 0.f;
    }
    for (int i = thread; i < kUnits; i += threads) {
      first[i] = first_layer(i, C);
      first[kUnits + i] = C > 0 ? first_layer(i, C - 1) : 0.f;
      first[2 * kUnits + i] = i < width ? read_parameter(head.bias[0], i, kBf16) : 0.f;
      output[i] = i < last ? read_parameter(head.weight[layers], i, kBf16) : 0.f;
    }
    if (thread == 0) output[kUnits] = read_parameter(head.bias[layers], 0, kBf16);
    for (int k = 1; k < layers; ++k) {
      const int in = int(head.width[k - 1]), out = int(head.width[k]);
      for (int i = thread; i < kUnits; i += threads) {
        bias[(k - 1) * kUnits + i] = i < out ? read_parameter(head.bias[k], i, kBf16) : 0.f;
      }
      for (int i = thread; i < kUnits * kUnits; i += threads) {
        const int unit = i / kUnits, column = i % kUnits;
        const float w = unit < out && column < in ? read_parameter(head.weight[k], unit * in + column, kBf16) : 0.f;
        hidden[((k - 1) * kUnits + unit) * kStride + place_of<T>(column)] = to_element<P>(w);
      }
    }
  }
};

template <Precision P, bool kOneRow, bool kTangent>
class Points {
  using Memory = PointsMemory<P, kOneRow, kTangent>;
  using T = Element<P>;
  static constexpr bool kBf16 = P == Precision::bf16;
  static constexpr int kStep = kDepth<P>, kHalf = Memory::kHalf;
  using Fragment = FragmentA<P>;
  static constexpr int kWords = int(sizeof(Fragment) / 4);
  // What a layer's values are between products. Registers hold them split where there is no tangent.
  static constexpr bool kSplit = P == Precision::exact && !kTangent;
  using Left = std::conditional_t<P == Precision::exact, SplitA, Fragment>;
  using Right = std::conditional_t<P == Precision::exact, SplitB, FragmentB<P>>;
  using Operand = std::conditional_t<kSplit, Left, Fragment>;
  // Of the output's terms, which may be far larger than the score: in float64 where scores are integrated.
  using Sum = std::conditional_t<kSplit, double, float>;
  static constexpr int kChunk = P == Precision::exact ? 16 : 32;  // as registers allow
  static constexpr int kChunks = kUnits / kChunk, kChunkTiles = kChunk / 8;
  static constexpr int kSteps = kUnits / kStep, kChunkSteps = kChunk / kStep;

 public:
  FASTCSM_INLINE Points(const HeadArgs& head, const Memory& memory)
      : m_(memory),
        args_(head),
        base_(memory.base + threadIdx.x / kWarp * Memory::kBase),
        kept_(memory.kept + threadIdx.x / kWarp * memory.words),
        lane_(threadIdx.x % kWarp) {}

  // The rows' share of the first layer, from context feature j of row i, at(i, j), for j < given, zeros beyond, and
  // `added` to the last of C features.
  template <class At>
  FASTCSM_INLINE void set_context(int given, float added, const At& at) const {
    constexpr int kTiles = kUnits / 16;  // a half of the units at a time, as registers allow
    const int row = lane_ / 4, pair = lane_ % 4 * 2;
    const auto value = [&](int i, int j) { return j < given ? at(i, j) : 0.f; };
    __syncwarp();
#pragma unroll 1
    for (int begin = 0; begin < kUnits / 8; begin += kTiles) {
      Accumulator a[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 w = pair_of(m_.first + kUnits, begin + n), bias = pair_of(m_.first + 2 * kUnits, begin + n);
        const float2 sum = make_float2(fmaf(added, w.x, bias.x), fmaf(added, w.y, bias.y));
        a[n] = {{sum.x, sum.y, sum.x, sum.y}};
      }
#pragma unroll 1
      for (int k = 0; k < m_.context; k += kStep) {
        Fragment c;
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          const int own = row + i % 2 * 8, column = k + i / 2 * kHalf;
          if constexpr (kBf16) {
            c.r[i] = pack_bf16(value(own, column + pair), value(own, column + pair + 1));
          } else {
            c.r[i] = __float_as_uint(to_element<P>(value(own, column + lane_ % 4)));
          }
        }
        add_products<false>(a, a, Operand(c), Operand(), m_.given + begin * 8 * m_.context_stride + k,
                            m_.context_stride);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if constexpr (!kOneRow) {
          const float4 sums{a[n].r[0], a[n].r[1], a[n].r[2], a[n].r[3]};
          reinterpret_cast<float4*>(base_)[(begin + n) * kWarp + lane_] = sums;
        } else if (row == 0) {
          reinterpret_cast<float2*>(base_)[(begin + n) * 4 + lane_] = make_float2(a[n].r[0], a[n].r[1]);
        }
      }
    }
    __syncwarp();
  }

  // s, and with kTangent s', at a point of each row i: lanes i and i + 16 bring its x, and under kFeature its last
  // context feature, and both get the results.
  template <bool kFeature>
  FASTCSM_INLINE void evaluate(float x, float feature, float& s, float& ds) const {
    Operand z[kSteps], u[kTangent ? kSteps : 1];
    Sum sum[2] = {0, 0}, dsum[2] = {0, 0};
    first_layer<kFeature>(x, feature, z, u, sum, dsum);
    const int layers = int(args_.layers);
#pragma unroll 1
    for (int k = 1; k < layers; ++k) {
      const int chunks = chunks_of(k), below = chunks_of(k - 1);
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        Accumulator a[kChunkTiles], t[kChunkTiles];
        multiply(a, t, k - 1, chunk, below, z, u);
        activate_chunk(a, t);
        if (k + 1 == layers) {
          add_output(a, t, chunk, sum, dsum);
        } else {
          Fragment next[2][kChunkSteps];
          as_operand(next[0], a);
          if constexpr (kTangent) as_operand(next[1], t);
#pragma unroll
          for (int i = 0; i < kChunkSteps; ++i) {
            keep(next[0][i], chunk * kChunkSteps + i);
            if constexpr (kTangent) keep(next[1][i], kSteps + chunk * kChunkSteps + i);
          }
        }
      }
      if (k + 1 == layers) break;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i >= chunks * kChunkSteps) break;
        z[i] = Operand(kept(i));
        if constexpr (kTangent) u[i] = Operand(kept(kSteps + i));
      }
    }
    s = float(of_row(sum) + m_.output[kUnits]);
    ds = kTangent ? float(of_row(dsum)) : 0.f;
  }

 private:
  FASTCSM_INLINE int chunks_of(int k) const { return (int(args_.width[k]) + kChunk - 1) / kChunk; }

  // Adds [z; u] w^T for the units in the rows of w.
  template <bool kBoth, int kTiles>
  FASTCSM_INLINE void add_products(Accumulator (&a)[kTiles], Accumulator (&t)[kTiles], const Operand& z,
                                   const Operand& u, const T* w, int stride) const {
    const Left of_z(z), of_u(u);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      FragmentB<P> b[2];
      load_b_transposed(b, w + n * 8 * stride, stride, lane_);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Right of_w(b[i]);
        multiply_add(a[n + i], of_z, of_w);
        if constexpr (kBoth) multiply_add(t[n + i], of_u, of_w);
      }
    }
  }

  // A chunk's columns as operands of the next product.
  template <class To>
  FASTCSM_INLINE static void as_operand(To* to, const Accumulator* from) {
#pragma unroll
    for (int k = 0; k < kChunkSteps; ++k) to[k] = To(fastcsm::as_operand<P>(from, k * (kStep / 8)));
  }

  // z = f(a) and u = f'(a) t in place.
  FASTCSM_INLINE void activate_chunk(Accumulator* a, Accumulator* t) const {
    with_activation(args_.activation, [&](auto code) {
#pragma unroll
      for (int n = 0; n < kChunkTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          Value<P> f, d, e;
          activate<code.value>(Value<P>(a[n].r[i]), f, d, e);
          a[n].r[i] = f.v;
          if constexpr (kTangent) t[n].r[i] *= d.v;
        }
      }
    });
  }

  // A chunk's part of s and s', of the lane's two rows and its columns.
  FASTCSM_INLINE void add_output(const Accumulator* z, const Accumulator* u, int chunk, Sum (&sum)[2],
                                 Sum (&dsum)[2]) const {
    const auto add_terms = [&](Sum(&of)[2], const Accumulator* terms) {
      float part[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) part[i] = kSplit ? 0.f : float(of[i]);
#pragma unroll
      for (int n = 0; n < kChunkTiles; ++n) {
        const float2 w = pair_of(m_.output, chunk * kChunkTiles + n);
#pragma unroll
        for (int i = 0; i < 2; ++i) part[i] = fmaf(w.y, terms[n].r[2 * i + 1], fmaf(w.x, terms[n].r[2 * i], part[i]));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) of[i] = kSplit ? of[i] + part[i] : Sum(part[i]);
    };
    add_terms(sum, z);
    if constexpr (kTangent) add_terms(dsum, u);
  }

  // Of a vector the elements of the lane's two columns of a tile.
  FASTCSM_INLINE float2 pair_of(const float* vector, int tile) const {
    return reinterpret_cast<const float2*>(vector)[tile * 4 + lane_ % 4];
  }

  // z_1 and u_1; of a head of one layer its part of s and s' instead.
  template <bool kFeature>
  FASTCSM_INLINE void first_layer(float x, float feature, Operand (&z)[kSteps], Operand (&u)[kTangent ? kSteps : 1],
                                  Sum (&sum)[2], Sum (&dsum)[2]) const {
    const float point[2] = {from_row(x, 0), from_row(x, 1)};
    const float own[2] = {kFeature ? from_row(feature, 0) : 0.f, kFeature ? from_row(feature, 1) : 0.f};
    keep_waves(point);
    const int chunks = chunks_of(0);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk >= chunks) break;
      Accumulator a[kChunkTiles], t[kChunkTiles];
#pragma unroll
      for (int n = 0; n < kChunkTiles; ++n) begin<kFeature>(a[n], t[n], chunk * kChunkTiles + n, point, own);
#pragma unroll 1
      for (int k = 0; k < m_.waves; k += kStep) {
        const T* w = m_.wave + chunk * kChunk * m_.wave_stride + k;
        add_products<kTangent>(a, t, Operand(kept(k / kStep)),
                               kTangent ? Operand(kept((m_.waves + k) / kStep)) : Operand(), w, m_.wave_stride);
      }
      activate_chunk(a, t);
      if (args_.layers == 1) {
        add_output(a, t, chunk, sum, dsum);
      } else {
        as_operand(z + chunk * kChunkSteps, a);
        if constexpr (kTangent) as_operand(u + chunk * kChunkSteps, t);
      }
    }
  }

  // a_1 and t_1 of a tile without sines and cosines.
  template <bool kFeature>
  FASTCSM_INLINE void begin(Accumulator& a, Accumulator& t, int tile, const float (&point)[2],
                            const float (&feature)[2]) const {
    const float2 w = pair_of(m_.first, tile);
    t = {{w.x, w.y, w.x, w.y}};
    if constexpr (kOneRow) {
      const float2 base = pair_of(base_, tile);
      a = {{base.x, base.y, base.x, base.y}};
    } else {
      const float4 base = reinterpret_cast<const float4*>(base_)[tile * kWarp + lane_];
      a = {{base.x, base.y, base.z, base.w}};
    }
    const float2 v = kFeature ? pair_of(m_.first + kUnits, tile) : float2{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.r[i] = fmaf(t.r[i], point[i / 2], a.r[i]);
      if constexpr (kFeature) a.r[i] = fmaf(i % 2 ? v.y : v.x, feature[i / 2], a.r[i]);
    }
  }

  // Operands [sin(w x), cos(w x)] of every kHalf frequencies, and under kTangent after them those of the derivatives.
  FASTCSM_INLINE void keep_waves(const float (&point)[2]) const {
    constexpr int kOwn = kBf16 ? 2 : 1;  // frequencies of a lane
#pragma unroll 1
    for (int k = 0; k < m_.waves; k += kStep) {
      Fragment h, dh;
#pragma unroll
      for (int n = 0; n < kWords / 2; ++n) {
        const int i = n % 2, first = n / 2 * 4 + i;
        float sine[2], cosine[2], dsine[2], dcosine[2];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const float w = m_.frequency[k / 2 + n / 2 * kHalf + lane_ % 4 * kOwn + j];
          wave(w, point[i], sine[j], cosine[j]);
          dsine[j] = w * cosine[j], dcosine[j] = -w * sine[j];
        }
        h.r[first] = words_of(sine), h.r[first + 2] = words_of(cosine);
        dh.r[first] = words_of(dsine), dh.r[first + 2] = words_of(dcosine);
      }
      keep(h, k / kStep);
      if constexpr (kTangent) keep(dh, (m_.waves + k) / kStep);
    }
  }
  FASTCSM_INLINE static uint32_t words_of(const float (&x)[2]) {
    if constexpr (kBf16) {
      return pack_bf16(x[0], x[1]);
    } else {
      return __float_as_uint(to_element<P>(x[0]));
    }
  }

  // [a; t] of a chunk of units: the bias and the product with matrix k, [z; u] being `below` chunks.
  FASTCSM_INLINE void multiply(Accumulator (&a)[kChunkTiles], Accumulator (&t)[kChunkTiles], int k, int chunk,
                               int below, const Operand (&z)[kSteps], const Operand (&u)[kTangent ? kSteps : 1]) const {
#pragma unroll
    for (int n = 0; n < kChunkTiles; ++n) {
      const float2 bias = pair_of(m_.bias + k * kUnits, chunk * kChunkTiles + n);
      a[n] = {{bias.x, bias.y, bias.x, bias.y}};
      t[n] = {};
    }
    const T* w = m_.hidden + (k * kUnits + chunk * kChunk) * Memory::kStride;
    // The usual case has no branch between its products.
    if (below == kChunks) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        add_products<kTangent>(a, t, z[i], u[kTangent ? i : 0], w + i * kStep, Memory::kStride);
      return;
    }
#pragma unroll
    for (int i = 0; i < kSteps - kChunkSteps; ++i) {
      if (i >= below * kChunkSteps) break;
      add_products<kTangent>(a, t, z[i], u[kTangent ? i : 0], w + i * kStep, Memory::kStride);
    }
  }

  // Operands in the lane's own words.
  FASTCSM_INLINE void keep(const Fragment& operand, int i) const {
    const uint32_t* r = operand.r;
#pragma unroll
    for (int n = 0; n < kWords; n += 4) {
      reinterpret_cast<uint4*>(kept_)[(i * (kWords / 4) + n / 4) * kWarp + lane_] = {r[n], r[n + 1], r[n + 2],
                                                                                     r[n + 3]};
    }
  }
  FASTCSM_INLINE Fragment kept(int i) const {
    Fragment operand;
#pragma unroll
    for (int n = 0; n < kWords; n += 4) {
      const uint4 r = reinterpret_cast<const uint4*>(kept_)[(i * (kWords / 4) + n / 4) * kWarp + lane_];
      operand.r[n] = r.x, operand.r[n + 1] = r.y, operand.r[n + 2] = r.z, operand.r[n + 3] = r.w;
    }
    return operand;
  }

  // What lane i brought for row i, of the lane's first or second row; and back, from sums of each lane's columns.
  FASTCSM_INLINE float from_row(float x, int i) const { return __shfl_sync(0xffffffffu, x, lane_ / 4 + 8 * i); }
  FASTCSM_INLINE Sum of_row(const Sum (&sum)[2]) const {
    Sum both[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Sum total = sum[i] + __shfl_xor_sync(0xffffffffu, sum[i], 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      both[i] = __shfl_sync(0xffffffffu, total, lane_ % 8 * 4);
    }
    return lane_ / 8 % 2 ? both[1] : both[0];
  }

  const Memory m_;
  const HeadArgs& args_;
  float* base_;
  uint32_t* kept_;
  int lane_;
};

}  // namespace fastcsm
