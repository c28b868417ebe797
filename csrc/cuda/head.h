// The score head in a block: parameters in shared memory for the block's life, a tile of rows going through.
//
// Primal and tangent are stacked: a tile of kRows rows, 32 or 16, is 2 kRows rows of every matrix, first the primal
// (input h, a_k, z_k), then the tangent (dh/dx, t_k, u_k), so that both meet each weight while it is in registers. The
// input of a row is
//     h = [c, x, sin(w x), cos(w x), 1]        dh/dx = [0, 1, w cos(w x), -w sin(w x), 0],
// the column of ones meeting the first bias. Widths are padded to kUnits with zero weights, which add nothing.
//
// A warp has 16 rows and kColumns<kRows> columns of a tile, primal and tangent, so that a thread holds a and t of the
// same unit.
//
// Matrices lie in shared memory with their columns at the places of place_of.
#pragma once

#include "cuda/activations.h"
#include "cuda/device.h"

namespace fastcsm {

constexpr int kUnits = 128;
constexpr int kThreads = 256;
template <int kRows>
constexpr int kColumnGroups = kThreads / kWarp / (kRows / 16);
template <int kRows>
constexpr int kColumns = kUnits / kColumnGroups<kRows>;
template <int kRows>
constexpr int kTiles = kColumns<kRows> / 8;  // accumulators side by side in a warp

// Where a column lies in its row. Of eight of float32 the even ones come first, so that columns 2t and 2t + 1, which
// lane t has of an accumulator, are columns t and t + 4 of an operand: of matrices that are read by rows and by
// columns, and written from accumulators, all without two lanes' words in one bank.
template <class T>
__host__ __device__ constexpr int place_of(int column) {
  return sizeof(T) == 2 ? column : column / 8 * 8 + column % 2 * 4 + column % 8 / 2;
}

// Where the thread is: its warp's 16 rows and its columns, and its place in a fragment. Kernels short of registers make
// a new one for each step.
template <int kRows>
struct Place {
  int warp, lane, group, row, column;

  FASTCSM_INLINE explicit Place(int thread = thread_number())
      : warp(unsigned(thread) / kWarp),
        lane(unsigned(thread) % kWarp),
        group(warp / (kRows / 16)),
        row(warp % (kRows / 16) * 16),
        column(group * kColumns<kRows>) {}

  // The row of the tile and the column of accumulator `tile` that its element i belongs to.
  FASTCSM_INLINE int row_of(int i) const { return row + lane / 4 + i / 2 * 8; }
  FASTCSM_INLINE int column_of(int tile, int i) const { return column + tile * 8 + lane % 4 * 2 + i % 2; }
};

// Of one warp: a (or z, gz, ga) and t (or u, gu, gt) of the same rows and units.
template <int kRows>
struct Pair {
  Accumulator a[kTiles<kRows>], t[kTiles<kRows>];
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
      first[unit * stride + place_of<T>(column)] = to_element<P>(w);
    }
    for (int k = 0; k + 1 < args.layers; ++k) {
      const int in = int(args.width[k]), out = int(args.width[k + 1]);
      for (int i = threadIdx.x; i < kUnits * kUnits; i += kThreads) {
        const int unit = i / kUnits, column = i % kUnits;
        const bool inside = unit < out && column < in;
        const float w = inside ? read_parameter(args.weight[k + 1], unit * in + column, kBf16) : 0.f;
        matrix(k)[unit * kStride + place_of<T>(column)] = to_element<P>(w);
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

// What a thread brings of a tile's inputs: x of row thread % kRows, and of row thread / kLanes every kLanes-th feature
// of the context, the first kAhead of them. Fetched a tile ahead, so that nobody waits for device memory.
template <Precision P, int kRows>
struct Fetched {
  static constexpr int kLanes = kThreads / kRows, kAhead = 32 / kLanes;
  Element<P> context[kAhead], x;
};

// The inputs of a tile, h over dh/dx.
template <Precision P, int kRows>
struct Inputs {
  using T = Element<P>;
  static constexpr int kAhead = Fetched<P, kRows>::kAhead, kLanes = Fetched<P, kRows>::kLanes;
  static_assert(kLanes % 8 == 0);

  T* h;  // (2 kRows, head.columns)

  __host__ __device__ Inputs(const Head<P>& head, SharedMemory& memory) : h(memory.take<T>(2 * kRows * head.stride)) {}

  // What is the same for every tile: the tangent of the context and of x, and the padding.
  FASTCSM_INLINE void clear(const Head<P>& head) {
    const int context = int(head.args.context), inputs = context + int(head.args.features());
    for (int i = threadIdx.x; i < 2 * kRows * head.columns; i += kThreads) {
      const int row = i / head.columns, column = i % head.columns;
      const bool primal = row < kRows;
      if (primal ? column >= inputs : column <= context || column >= inputs) {
        const bool one = column == (primal ? inputs : context);
        h[row * head.stride + place_of<T>(column)] = to_element<P>(one ? 1.f : 0.f);
      }
    }
  }

  // Of the rows first .. of the N, zeros beyond the last.
  FASTCSM_INLINE Fetched<P, kRows> fetch(const Head<P>& head, const void* context, const void* x, int64_t first,
                                         int64_t rows) const {
    const int C = int(head.args.context), thread = thread_number(), column = thread % kLanes;
    const int64_t row = first + thread / kLanes, own_row = first + thread % kRows;
    const T* c = static_cast<const T*>(context) + row * C + column;
    Fetched<P, kRows> fetched{};
    if (own_row < rows) fetched.x = static_cast<const T*>(x)[own_row];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (row < rows && column + k * kLanes < C) fetched.context[k] = c[k * kLanes];
    }
    return fetched;
  }

  // To h; a barrier must follow.
  FASTCSM_INLINE void store(const Head<P>& head, const Fetched<P, kRows>& fetched, const void* context, int64_t first,
                            int64_t rows) const {
    const int C = int(head.args.context), E = int(head.args.frequencies), thread = thread_number();
    const int row = thread / kLanes, column = thread % kLanes;
    const T* c = static_cast<const T*>(context) + (first + row) * C + column;
    T* of_row = h + row * head.stride + place_of<T>(column);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (column + k * kLanes < C) of_row[k * kLanes] = as_element(fetched.context[k]);
    }
    for (int j = kAhead * kLanes; column + j < C; j += kLanes) {
      of_row[j] = as_element(first + row < rows ? c[j] : T{});
    }
    T* primal = h + thread % kRows * head.stride;
    T* tangent = primal + kRows * head.stride;
    if (thread < kRows) primal[place_of<T>(C)] = as_element(fetched.x);
    const float v = from_storage(fetched.x);
    for (int e = thread / kRows; e < E; e += kThreads / kRows) {
      const float w = head.frequency[e];
      float sine, cosine;
      wave<P>(w, v, sine, cosine);
      const int of_sine = place_of<T>(C + 1 + e), of_cosine = place_of<T>(C + 1 + E + e);
      primal[of_sine] = to_element<P>(sine);
      primal[of_cosine] = to_element<P>(cosine);
      tangent[of_sine] = to_element<P>(w * cosine);
      tangent[of_cosine] = to_element<P>(-w * sine);
    }
  }

 private:
  FASTCSM_INLINE static T as_element(T v) {
    if constexpr (P == Precision::bf16) {
      return v;
    } else {
      return to_element<P>(v);
    }
  }
};

// One step of the warp's part of [h; dh] W^T: columns k .. of h and dh, as A, with those of W, whose rows are units.
template <Precision P, int kRows>
FASTCSM_INLINE void add_step(Pair<kRows>& out, const Place<kRows>& at, const FragmentA<P>& a, const FragmentA<P>& t,
                             bool both, const Element<P>* w, int stride, int k) {
  const OperandA<P> of_a(a), of_t(P == Precision::exact && !both ? FragmentA<P>{} : t);
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; n += 2) {
    FragmentB<P> b[2];
    load_b_transposed(b, w + (at.column + n * 8) * stride + k, stride, at.lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const OperandB<P> of_w(b[i]);
      multiply_add(out.a[n + i], of_a, of_w);
      if (both) multiply_add(out.t[n + i], of_t, of_w);
    }
  }
}

// The warp's part of [h; dh] W_1^T; the tangent's first `skip` columns are zero.
template <Precision P, int kRows>
FASTCSM_INLINE void product_first(Pair<kRows>& out, const Place<kRows>& at, const Element<P>* h, const Element<P>* w,
                                  int stride, int columns, int skip) {
  constexpr int kStep = kDepth<P>;
  const Element<P>* primal = h + at.row * stride;
#pragma unroll 1
  for (int first = 0; first < columns; first += kTogether<P> * kStep) {
#pragma unroll
    for (int k = first; k < first + kTogether<P> * kStep; k += kStep) {
      if (k >= columns) break;
      FragmentA<P> a, t;
      load_a(a, primal + k, stride, at.lane);
      const bool both = k + kStep > skip;
      if (both) load_a(t, primal + kRows * stride + k, stride, at.lane);
      add_step<P>(out, at, a, t, both, w, stride, k);
    }
  }
}

// The A that columns 8 n .. of a warp's part are for the next product.
template <Precision P>
FASTCSM_INLINE FragmentA<P> as_operand(const Accumulator* part, int n) {
  const float *p = part[n].r, *q = part[n + 1].r;
  if constexpr (P == Precision::bf16) {
    return {{pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3]), pack_bf16(q[0], q[1]), pack_bf16(q[2], q[3])}};
  } else {
    const auto bits = [](float x) { return __float_as_uint(to_element<P>(x)); };
    if constexpr (P == Precision::exact) {
      return {{bits(p[0]), bits(p[2]), bits(p[1]), bits(p[3]), bits(q[0]), bits(q[2]), bits(q[1]), bits(q[3])}};
    } else {
      return {{bits(p[0]), bits(p[2]), bits(p[1]), bits(p[3])}};
    }
  }
}

// Columns of a matrix just stored that the warp itself takes from its registers; exact products have none to spare.
template <Precision P, int kRows>
constexpr int kOwnColumns = P == Precision::exact ? 0 : kColumns<kRows>;

// The warp's part of [z; u] W^T, without u where not both are wanted. It begins with its own columns of [z; u]; the
// others' are in memory once all warps have passed the barrier in here.
template <Precision P, int kRows>
FASTCSM_INLINE void product_forward(Pair<kRows>& out, const Place<kRows>& at, const Pair<kRows>& own,
                                    const Element<P>* z, const Element<P>* w, bool both) {
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<P>;
#pragma unroll
  for (int k = 0; k < kOwnColumns<P, kRows>; k += kStep) {
    const FragmentA<P> a = as_operand<P>(own.a, k / 8), t = as_operand<P>(own.t, k / 8);
    add_step<P>(out, at, a, t, both, w, kStride, at.column + k);
  }
  __syncthreads();
  const Element<P>* primal = z + at.row * kStride;
#pragma unroll(kTogether<P>)
  for (int i = kOwnColumns<P, kRows>; i < kUnits; i += kStep) {
    const int k = (at.column + i) % kUnits;
    FragmentA<P> a, t;
    load_a(a, primal + k, kStride, at.lane);
    if (both) load_a(t, primal + kRows * kStride + k, kStride, at.lane);
    add_step<P>(out, at, a, t, both, w, kStride, k);
  }
}

// a = bias of the warp's columns (null for none), t = 0.
template <int kRows>
FASTCSM_INLINE void begin(Pair<kRows>& out, const Place<kRows>& at, const float* bias) {
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out.a[n].r[i] = bias ? bias[at.column_of(n, i)] : 0.f;
      out.t[n].r[i] = 0.f;
    }
  }
}

// z = f(a) and u = f'(a) t of the warp's units, and in place of a and t what the way back needs of them: f'(a) and
// f''(a) t. So no activation is evaluated twice.
template <Precision P, int kRows>
FASTCSM_INLINE void apply_activation(Pair<kRows>& layer, Pair<kRows>& value, int activation) {
  with_activation(activation, [&](auto code) {
#pragma unroll
    for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Value<P> f, d, e;
        const float t = layer.t[n].r[i];
        activate<code.value>(Value<P>(layer.a[n].r[i]), f, d, e);
        value.a[n].r[i] = f.v;
        value.t[n].r[i] = d.v * t;
        layer.a[n].r[i] = d.v;
        layer.t[n].r[i] = e.v * t;
      }
    }
  });
}

// The warp's part to rows of a matrix (2 kRows, kUnits).
template <Precision P, int kRows>
FASTCSM_INLINE void store(const Pair<kRows>& part, const Place<kRows>& at, Element<P>* matrix) {
  using T = Element<P>;
  constexpr int kStride = Head<P>::kStride;
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      T* p = matrix + at.row_of(i) * kStride + place_of<T>(at.column_of(n, 0));
      if constexpr (P == Precision::bf16) {
        store_pair<P>(p, part.a[n].r[i], part.a[n].r[i + 1]);
        store_pair<P>(p + kRows * kStride, part.t[n].r[i], part.t[n].r[i + 1]);
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          p[4 * j] = to_element<P>(part.a[n].r[i + j]);
          p[kRows * kStride + 4 * j] = to_element<P>(part.t[n].r[i + j]);
        }
      }
    }
  }
}

// Of z and u of the last layer the warp's columns' part of s and s', to shares (kColumnGroups, 2 kRows).
template <int kRows>
FASTCSM_INLINE void store_shares(const Pair<kRows>& value, const Place<kRows>& at, const float* output, float* shares) {
  float s[2] = {0.f, 0.f}, ds[2] = {0.f, 0.f};
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float w = output[at.column_of(n, i)];
      s[i / 2] += w * value.a[n].r[i];
      ds[i / 2] += w * value.t[n].r[i];
    }
  }
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
template <int kRows>
FASTCSM_INLINE float sum_shares(const float* shares, int row) {
  float sum = 0;
#pragma unroll
  for (int group = 0; group < kColumnGroups<kRows>; ++group) sum += shares[group * 2 * kRows + row];
  return sum;
}

}  // namespace fastcsm
