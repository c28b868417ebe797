// The score head in a block: parameters in shared memory for the block's life, a tile of rows going through.
//
// Primal and tangent are stacked: a tile of kRows rows is 2 kRows rows of every matrix, first the primal (input h, a_k,
// z_k), then the tangent (dh/dx, t_k, u_k), so that both meet each weight while it is in registers. The input of a row
// is
//     h = [c, x, sin(w x), cos(w x), 1]        dh/dx = [0, 1, w cos(w x), -w sin(w x), 0],
// the column of ones meeting the first bias. Widths are padded to kUnits with zero weights, which add nothing.
//
// A warp has 16 rows and kColumns columns of a tile, primal and tangent, so that a thread holds a and t of the same
// unit.
#pragma once

#include "cuda/activations.h"
#include "cuda/device.h"

namespace fastcsm {

constexpr int kUnits = 128;
constexpr int kRows = 32;
constexpr int kThreads = 256;
constexpr int kColumns = 32;
constexpr int kColumnGroups = kUnits / kColumns;
constexpr int kTiles = kColumns / 8;  // accumulators side by side in a warp
static_assert(kThreads / kWarp == kRows / 16 * kColumnGroups);

// Where the thread is: its warp's 16 rows and kColumns columns, and its place in a fragment. Kernels short of registers
// make a new one for each step.
struct Place {
  int warp, lane, group, row, column;

  FASTCSM_INLINE explicit Place(int thread = thread_number())
      : warp(thread / kWarp),
        lane(thread % kWarp),
        group(warp / (kRows / 16)),
        row(warp % (kRows / 16) * 16),
        column(group * kColumns) {}

  // The row of the tile and the column of accumulator `tile` that its element i belongs to.
  FASTCSM_INLINE int row_of(int i) const { return row + lane / 4 + i / 2 * 8; }
  FASTCSM_INLINE int column_of(int tile, int i) const { return column + tile * 8 + lane % 4 * 2 + i % 2; }
};

// Of one warp: a (or z, gz, ga) and t (or u, gu, gt) of the same rows and units.
struct Pair {
  Accumulator a[kTiles], t[kTiles];
};

FASTCSM_INLINE float read_parameter(const void* p, int64_t i, bool bf16) {
  return bf16 ? from_storage(static_cast<const Bf16*>(p)[i]) : static_cast<const float*>(p)[i];
}

// The head's parameters in shared memory.
template <Precision P>
struct Head {
  using T = Element<P>;
  static constexpr int kStride = padded_stride<T>(kUnits);

  const HeadArgs& args;
  int columns, stride;  // of the input, padded to whole products
  T* first;             // (kUnits, columns): [W_c, w_x, W_sin, W_cos, b_1]
  T* hidden;            // (K - 1, kUnits, kUnits): W_2 ..
  float* bias;          // (K - 1, kUnits): b_2 ..
  float* output;        // (kUnits + 1): w_o, b_o
  float* frequency;     // (E)

  // What does not depend on the inputs comes first, so that a kernel that knows the layers knows its place.
  __host__ __device__ Head(const HeadArgs& head, int layers, SharedMemory& memory)
      : args(head), columns(round_up(int(head.context + head.features()) + 1, 16)), stride(padded_stride<T>(columns)) {
    hidden = memory.take<T>((layers - 1) * kUnits * kStride);
    bias = memory.take<float>((layers - 1) * kUnits);
    output = memory.take<float>(kUnits + 1);
    first = memory.take<T>(kUnits * stride);
    frequency = memory.take<float>(columns);
  }

  // W_{k + 2}.
  FASTCSM_INLINE T* matrix(int k) const { return hidden + k * kUnits * kStride; }

  // Fills the memory; a barrier must follow.
  FASTCSM_INLINE void load() {
    constexpr bool kBf16 = P == Precision::bf16;
    const int width = int(args.width[0]), inputs = int(args.context + args.features());
    for (int i = threadIdx.x; i < kUnits * columns; i += kThreads) {
      const int unit = i / columns, column = i % columns;
      float w = 0;
      if (unit < width && column < inputs) w = read_parameter(args.weight[0], unit * inputs + column, kBf16);
      if (unit < width && column == inputs) w = read_parameter(args.bias[0], unit, kBf16);
      first[unit * stride + column] = to_element<P>(w);
    }
    for (int k = 0; k + 1 < args.layers; ++k) {
      const int in = int(args.width[k]), out = int(args.width[k + 1]);
      for (int i = threadIdx.x; i < kUnits * kUnits; i += kThreads) {
        const int unit = i / kUnits, column = i % kUnits;
        const bool inside = unit < out && column < in;
        const float w = inside ? read_parameter(args.weight[k + 1], unit * in + column, kBf16) : 0.f;
        matrix(k)[unit * kStride + column] = to_element<P>(w);
      }
      for (int i = threadIdx.x; i < kUnits; i += kThreads) {
        bias[k * kUnits + i] = i < out ? read_parameter(args.bias[k + 1], i, kBf16) : 0.f;
      }
    }
    for (int i = threadIdx.x; i < kUnits; i += kThreads) {
      output[i] = i < args.width[args.layers - 1] ? read_parameter(args.weight[args.layers], i, kBf16) : 0.f;
    }
    for (int i = threadIdx.x; i < args.frequencies; i += kThreads) {
      frequency[i] = read_parameter(args.frequency, i, kBf16);
    }
    if (threadIdx.x == 0) output[kUnits] = read_parameter(args.bias[args.layers], 0, kBf16);
  }
};

// The inputs of a tile, h over dh/dx.
template <Precision P>
struct Inputs {
  using T = Element<P>;

  T* h;  // (2 kRows, head.columns)

  __host__ __device__ Inputs(const Head<P>& head, SharedMemory& memory) : h(memory.take<T>(2 * kRows * head.stride)) {}

  // What is the same for every tile: the tangent of the context, and the padding.
  FASTCSM_INLINE void clear(const Head<P>& head) {
    const int context = int(head.args.context), inputs = context + int(head.args.features());
    for (int i = threadIdx.x; i < 2 * kRows * head.columns; i += kThreads) {
      const int row = i / head.columns, column = i % head.columns;
      if (row < kRows ? column > inputs : column < context || column >= inputs) {
        h[row * head.stride + column] = to_element<P>(0.f);
      }
      if (row < kRows && column == inputs) h[row * head.stride + column] = to_element<P>(1.f);
    }
  }

  // Rows first .. of the N, zeros beyond the last; a barrier must follow.
  FASTCSM_INLINE void load(const Head<P>& head, const void* context, const void* x, int64_t first, int64_t rows) {
    using S = Element<P>;
    const int C = int(head.args.context), E = int(head.args.frequencies), thread = thread_number();
    for (int i = thread; i < kRows * C; i += kThreads) {
      const int row = i / C, column = i % C;
      const bool inside = first + row < rows;
      const float c = inside ? from_storage(static_cast<const S*>(context)[first * C + i]) : 0.f;
      h[row * head.stride + column] = to_element<P>(c);
    }
    for (int i = thread; i < kRows * (E + 1); i += kThreads) {
      const int row = i % kRows, e = i / kRows - 1;
      const float v = first + row < rows ? from_storage(static_cast<const S*>(x)[first + row]) : 0.f;
      T* primal = h + row * head.stride + C;
      T* tangent = primal + kRows * head.stride;
      if (e < 0) {
        primal[0] = to_element<P>(v);
        tangent[0] = to_element<P>(1.f);
      } else {
        const float w = head.frequency[e];
        float sine, cosine;
        wave(w, v, sine, cosine);
        primal[1 + e] = to_element<P>(sine);
        primal[1 + E + e] = to_element<P>(cosine);
        tangent[1 + e] = to_element<P>(w * cosine);
        tangent[1 + E + e] = to_element<P>(-w * sine);
      }
    }
  }
};

// The warp's part of [h; dh] W^T: units in the rows of W, `depth` columns; the tangent's first `skip` are zero.
template <Precision P>
FASTCSM_INLINE void product_forward(Pair& out, const Place& at, const Element<P>* h, int h_stride, const Element<P>* w,
                                    int w_stride, int depth, int skip) {
  constexpr int kStep = kDepth<Element<P>>;
  const Element<P>* primal = h + at.row * h_stride;
  const Element<P>* tangent = primal + kRows * h_stride;
#pragma unroll 1
  for (int k = 0; k < depth; k += kStep) {
    FragmentA a, t;
    load_a(a, primal + k, h_stride, at.lane);
    const bool both = k + kStep > skip;
    if (both) load_a(t, tangent + k, h_stride, at.lane);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      FragmentB b[2];
      load_b_transposed(b, w + (at.column + n * 8) * w_stride + k, w_stride, at.lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add<P>(out.a[n + i], a, b[i]);
        if (both) multiply_add<P>(out.t[n + i], t, b[i]);
      }
    }
  }
}

// a = bias of the warp's columns (null for none), t = 0.
FASTCSM_INLINE void begin(Pair& out, const Place& at, const float* bias) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out.a[n].r[i] = bias ? bias[at.column_of(n, i)] : 0.f;
      out.t[n].r[i] = 0.f;
    }
  }
}

// z = f(a) and u = f'(a) t of the warp's units, to rows of z (2 kRows, kUnits).
template <Precision P>
FASTCSM_INLINE void store_activated(const Pair& in, const Place& at, int activation, Element<P>* z) {
  constexpr int kStride = Head<P>::kStride;
  with_activation(activation, [&](auto code) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        float f[2], d[2], e;
        activate<code.value>(in.a[n].r[i], f[0], d[0], e);
        activate<code.value>(in.a[n].r[i + 1], f[1], d[1], e);
        Element<P>* p = z + at.row_of(i) * kStride + at.column_of(n, 0);
        store_pair<P>(p, f[0], f[1]);
        store_pair<P>(p + kRows * kStride, d[0] * in.t[n].r[i], d[1] * in.t[n].r[i + 1]);
      }
    }
  });
}

// The warp's columns' part of s and s', to shares (kColumnGroups, 2 kRows).
FASTCSM_INLINE void store_shares(const Pair& in, const Place& at, int activation, const float* output, float* shares) {
  float s[2] = {0.f, 0.f}, ds[2] = {0.f, 0.f};
  with_activation(activation, [&](auto code) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float w = output[at.column_of(n, i)];
        float f, d, e;
        activate<code.value>(in.a[n].r[i], f, d, e);
        s[i / 2] += w * f;
        ds[i / 2] += w * (d * in.t[n].r[i]);
      }
    }
  });
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      s[i] += __shfl_xor_sync(0xffffffffu, s[i], lanes);
      ds[i] += __shfl_xor_sync(0xffffffffu, ds[i], lanes);
    }
    if (at.lane % 4 == 0) {
      float* p = shares + at.group * 2 * kRows + at.row_of(2 * i);
      p[0] = s[i];
      p[kRows] = ds[i];
    }
  }
}

// The sum of a row's shares; rows from kRows on are the tangent's.
FASTCSM_INLINE float sum_shares(const float* shares, int row) {
  float sum = 0;
#pragma unroll
  for (int group = 0; group < kColumnGroups; ++group) sum += shares[group * 2 * kRows + row];
  return sum;
}

}  // namespace fastcsm
