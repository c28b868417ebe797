// A tile of a product of two matrices in device memory, made by one block. Tiles of both operands come by asynchronous
// copies into kStages stages of shared memory, all but one of which are on their way while one is multiplied. Which
// blocks of the sum there are, and what is done to a stage before it is multiplied, the caller says.
//
// A stage is as deep as its rows of memory are wide: kSteps units of the sum, kRowBytes bytes of an operand whose rows
// run along it. An operand whose rows run across it lies in shared memory as in device memory, and is transposed on the
// way into registers.
#pragma once

#include "cuda/device.h"

namespace fastcsm {

constexpr int kProductThreads = 4 * kWarp;

// kM x kN of the product by four warps, each kWarpM x kWarpN of it; warps that are left share the steps of a stage.
// kBlocks blocks fit in a multiprocessor's registers.
template <int kM_, int kN_, int kWarpM_, int kWarpN_, int kRowBytes, int kStages_, int kBlocks_>
struct Shape {
  static constexpr int kM = kM_, kN = kN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static constexpr int kWarps = kM / kWarpM * (kN / kWarpN), kShares = kProductThreads / kWarp / kWarps;
  static_assert(kWarps * kShares * kWarp == kProductThreads && kRowBytes % (32 * kShares) == 0);

  template <class T>
  static constexpr int kSteps = kRowBytes / int(sizeof(T));
};

// A matrix (rows, columns) in device memory; every row begins at a multiple of `aligned` bytes, 16, 4 or 2.
template <class T>
struct Matrix {
  const T* p;
  int64_t rows;
  int columns, aligned;
};

// Tiles of it in shared memory, units unit .. of one operand: kUnits rows of kSteps columns where rows run along the
// sum, else the other way round. A thread's part in copying them.
template <class T, int kUnits, int kSteps, bool kAlong>
class Operand {
 public:
  static constexpr int kRows = kAlong ? kUnits : kSteps, kColumns = kAlong ? kSteps : kUnits;
  // Eight rows of 16 bytes, or four rows of eight floats, lie in different banks.
  static constexpr int kStride = kAlong ? padded_stride<T>(kColumns) : kColumns + 8;
  static constexpr int kSize = kRows * kStride;

  FASTCSM_INLINE Operand(const Matrix<T>& from, int64_t unit) : from_(from), unit_(unit) {
    const int row = first_row(kChunk), column = first_column(kChunk);
    begin_ = from.p + (kAlong ? (unit + row) * from.columns + column : int64_t(row) * from.columns + unit + column);
    const int64_t left = kAlong ? from.rows - unit : from.columns - unit;
    left_ = int(left < kUnits ? left : kUnits) - (kAlong ? row : column);
  }

  // Begins to copy the tile of steps k .. ; zeros outside of the matrix.
  FASTCSM_INLINE void load(T* tile, int64_t k) const {
    if (from_.aligned == 16) {
      constexpr int kStep = kProductThreads / (kColumns / kChunk);
      static_assert(kRows % kStep == 0);
      const int row = first_row(kChunk), column = first_column(kChunk);
      const T* p = begin_ + (kAlong ? k : k * from_.columns);
      T* to = tile + row * kStride + column;
      const int64_t below = from_.rows - k;
      const int steps = kAlong ? from_.columns - int(k) - column : int(below < kSteps ? below : kSteps) - row;
      const int rows = kAlong ? left_ : steps;
      const bool inside = (kAlong ? steps : left_) > 0;
#pragma unroll
      for (int r = 0; r < kRows; r += kStep) {
        copy_async<16>(to + r * kStride, p, inside && r < rows);
        p += int64_t(kStep) * from_.columns;
      }
    } else if (sizeof(T) == 4 || from_.aligned == 4) {
      load_slowly<4>(tile, k);
    } else if constexpr (sizeof(T) == 2) {
      load_slowly<2>(tile, k);
    }
  }

 private:
  static constexpr int kChunk = 16 / int(sizeof(T));

  // Threads have `count` neighbours of a row each.
  static FASTCSM_INLINE int first_row(int count) { return int(unsigned(thread_number()) / unsigned(kColumns / count)); }
  static FASTCSM_INLINE int first_column(int count) {
    return int(unsigned(thread_number()) % unsigned(kColumns / count)) * count;
  }

  // By 4 bytes, or by elements of 2, which are there at once.
  template <int kBytes>
  FASTCSM_INLINE void load_slowly(T* tile, int64_t k) const {
    constexpr int kCount = kBytes / int(sizeof(T)), kStep = kProductThreads / (kColumns / kCount);
    static_assert(kRows % kStep == 0);
    const int first = first_row(kCount), column = first_column(kCount);
    const int64_t at = (kAlong ? k : unit_) + column;
#pragma unroll(kBytes == 2 ? 8 : 1)
    for (int r = 0; r < kRows; r += kStep) {
      const int64_t in = (kAlong ? unit_ : k) + first + r;
      const bool inside = in < from_.rows && at < from_.columns;
      const T* p = from_.p + (in * from_.columns + at);
      T* to = tile + (first + r) * kStride + column;
      if constexpr (kBytes == 2) {
        *to = inside ? *p : T{};
      } else {
        copy_async<kBytes>(to, p, inside);
      }
    }
  }

  Matrix<T> from_;
  int64_t unit_;
  const T* begin_;  // of the thread's first 16 bytes at k = 0
  int left_;        // units from there on
};

// Fragments as products of precision P take them.
template <Precision P, int kCount>
FASTCSM_INLINE void round_fragment(uint32_t (&r)[kCount]) {
  if constexpr (P == Precision::tf32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) r[i] = __float_as_uint(round_tf32(__uint_as_float(r[i])));
  }
}

// Four neighbours to memory, of which `count` are there; `aligned`: together, p being aligned to them.
template <class T>
FASTCSM_INLINE void store_four(T* p, const float (&values)[4], int64_t count, bool aligned) {
  if (aligned && count >= 4) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint2*>(p) = {pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3])};
    } else {
      *reinterpret_cast<float4*>(p) = make_float4(values[0], values[1], values[2], values[3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) p[i] = to_storage<T>(values[i]);
  }
}

// The opposite; zeros for those that are not there.
template <class T>
FASTCSM_INLINE void load_four(float (&values)[4], const T* p, int64_t count, bool aligned) {
  if (aligned && count >= 4) {
    if constexpr (sizeof(T) == 2) {
      const uint2 pairs = *reinterpret_cast<const uint2*>(p);
      values[0] = __uint_as_float(pairs.x << 16);
      values[1] = __uint_as_float(pairs.x & 0xffff0000u);
      values[2] = __uint_as_float(pairs.y << 16);
      values[3] = __uint_as_float(pairs.y & 0xffff0000u);
    } else {
      const float4 four = *reinterpret_cast<const float4*>(p);
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = i < count ? from_storage(p[i]) : 0.f;
}

// A block's tile. A is its left operand, kM units, and B its right one, kN.
template <Precision P, class S, bool kAlongA, bool kAlongB>
struct Product {
  using T = Element<P>;
  static constexpr int kSteps = S::template kSteps<T>;
  using A = Operand<T, S::kM, kSteps, kAlongA>;
  using B = Operand<T, S::kN, kSteps, kAlongB>;
  static constexpr int kSumStride = S::kN + 8;  // of sums in shared memory, whose pairs lie in different banks
  static constexpr int kStageBytes = S::kStages * (A::kSize + B::kSize) * int(sizeof(T));
  static constexpr int kSums = S::kWarpM * kSumStride, kSumBytes = S::kShares * kSums * int(sizeof(float));

  T* stages;  // (kStages, A then B); in the end the sums
  int warp, lane;
  Accumulator sums[S::kFragmentsM][S::kFragmentsN];

  __host__ __device__ explicit Product(SharedMemory& memory)
      : stages(memory.take<T>((kStageBytes > kSumBytes ? kStageBytes : kSumBytes) / int(sizeof(T)))) {}

  FASTCSM_INLINE T* a(int stage) const { return stages + stage * (A::kSize + B::kSize); }
  FASTCSM_INLINE T* b(int stage) const { return a(stage) + A::kSize; }
  // The warp's place in the tile, and which share of the steps it has.
  FASTCSM_INLINE int first_row() const { return warp % S::kWarps / (S::kN / S::kWarpN) * S::kWarpM; }
  FASTCSM_INLINE int first_column() const { return warp % (S::kN / S::kWarpN) * S::kWarpN; }
  FASTCSM_INLINE int share() const { return S::kShares > 1 ? warp / S::kWarps : 0; }

  // sums = A B over the blocks that next() names, -1 being none. load(block, a, b) begins to copy one;
  // prepare(block, a, b) may change what has arrived, and ends with a barrier if it does. Rows of fragments from
  // `filled` on are known to be zero.
  template <class Next, class Load, class Prepare>
  FASTCSM_INLINE void run(int filled, const Next& next, const Load& load, const Prepare& prepare) {
    warp = thread_number() / kWarp;
    lane = thread_number() % kWarp;
#pragma unroll
    for (auto& row : sums) {
#pragma unroll
      for (Accumulator& sum : row) sum = {};
    }
    int ahead[S::kStages];  // the blocks that are on their way, the next one first
#pragma unroll
    for (int i = 0; i < S::kStages - 1; ++i) {
      ahead[i] = next();
      if (ahead[i] >= 0) load(ahead[i], a(i), b(i));
      commit_copies();
    }
    int stage = 0;
    while (ahead[0] >= 0) {
      wait_copies<S::kStages - 2>();
      __syncthreads();
      // The stage that was multiplied last, which the barrier has seen all warps leave.
      const int free = stage == 0 ? S::kStages - 1 : stage - 1;
      ahead[S::kStages - 1] = next();
      if (ahead[S::kStages - 1] >= 0) load(ahead[S::kStages - 1], a(free), b(free));
      commit_copies();
      prepare(ahead[0], a(stage), b(stage));
      multiply(a(stage), b(stage), filled);
#pragma unroll
      for (int i = 0; i + 1 < S::kStages; ++i) ahead[i] = ahead[i + 1];
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
    }
  }

  FASTCSM_INLINE void multiply(const T* left, const T* right, int filled) {
    const int row = first_row(), column = first_column();
#pragma unroll(P == Precision::exact && !kAlongA ? 1 : kSteps)  // as registers allow
    for (int step = 0; step < kSteps; step += S::kShares * kDepth<P>) {
      const int k = step + share() * kDepth<P>;
      OperandA<P> of_a[S::kFragmentsM];
#pragma unroll
      for (int m = 0; m < S::kFragmentsM; ++m) {
        if (m >= filled) break;
        FragmentA<P> a;
        if constexpr (kAlongA) {
          load_a(a, left + (row + 16 * m) * A::kStride + k, A::kStride, lane);
        } else {
          load_a_transposed(a, left + k * A::kStride + row + 16 * m, A::kStride, lane);
        }
        round_fragment<P>(a.r);
        of_a[m] = OperandA<P>(a);
      }
#pragma unroll
      for (int n = 0; n < S::kFragmentsN; n += 2) {
        FragmentB<P> fb[2];
        if constexpr (kAlongB) {
          load_b_transposed(fb, right + (column + 8 * n) * B::kStride + k, B::kStride, lane);
        } else {
          load_b(fb, right + k * B::kStride + column + 8 * n, B::kStride, lane);
        }
        round_fragment<P>(fb[0].r);
        round_fragment<P>(fb[1].r);
        const OperandB<P> first(fb[0]), second(fb[1]);
#pragma unroll
        for (int m = 0; m < S::kFragmentsM; ++m) {
          if (m >= filled) break;
          multiply_add(sums[m][n], of_a[m], first);
          multiply_add(sums[m][n + 1], of_a[m], second);
        }
      }
    }
  }

  // Calls function(row, column, sums) for each four neighbours of the tile, neighbouring threads having neighbouring
  // fours. The sums go through the memory of the stages, kWarpM rows at a time.
  template <class Function>
  FASTCSM_INLINE void for_each_sum(const Function& function) {
    float* shared = reinterpret_cast<float*>(stages);
#pragma unroll 1
    for (int first = 0; first < S::kM; first += S::kWarpM) {
      __syncthreads();
      if (first_row() == first) {
#pragma unroll
        for (int m = 0; m < S::kFragmentsM; ++m) {
#pragma unroll
          for (int n = 0; n < S::kFragmentsN; ++n) {
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              const int row = 16 * m + lane / 4 + i / 2 * 8, column = first_column() + 8 * n + lane % 4 * 2;
              *reinterpret_cast<float2*>(shared + share() * kSums + row * kSumStride + column) =
                  make_float2(sums[m][n].r[i], sums[m][n].r[i + 1]);
            }
          }
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int i = thread_number(); i < S::kWarpM * S::kN / 4; i += kProductThreads) {
        const int row = i / (S::kN / 4), column = i % (S::kN / 4) * 4;
        const float* from = shared + row * kSumStride + column;
        float values[4];
        load_four(values, from, 4, true);
#pragma unroll
        for (int share = 1; share < S::kShares; ++share) {
          float more[4];
          load_four(more, from + share * kSums, 4, true);
#pragma unroll
          for (int j = 0; j < 4; ++j) values[j] += more[j];
        }
        function(first + row, column, values);
      }
    }
    __syncthreads();
  }
};

}  // namespace fastcsm
