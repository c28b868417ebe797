// The vocabulary of the kernels: shared memory, fragments of matrices, rounding. Everything that is not plain C++ on
// the device has a twin here for csrc/emulation/.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulation/cuda_emulation.h"
#endif

#define FASTCSM_INLINE __device__ __forceinline__

#include "common/head.h"

namespace fastcsm {

constexpr int kWarp = 32;

// How products of matrices are done: bfloat16 operands; tf32 operands; or float32 operands as sums of two tf32 each, of
// whose products three count, or of three bfloat16 each, of whose products six do. All accumulate in float32. Matrix
// units truncate, so that float32 sums leave them after 16 columns and are added up rounded to nearest.
enum class Precision { bf16, tf32, exact };

// What matrices are made of in memory.
template <Precision P>
struct ElementOf {
  using type = float;
};
template <>
struct ElementOf<Precision::bf16> {
  using type = Bf16;
};
template <Precision P>
using Element = typename ElementOf<P>::type;

// Carves a block's dynamic shared memory into arrays. Measured on the host, where no memory is behind it.
class SharedMemory {
 public:
#if defined(__CUDACC__)
  __host__ __device__ explicit SharedMemory(char* memory = nullptr) : memory_(memory) {}
  static constexpr int kGap = 0;
#else
  explicit SharedMemory(char* memory = nullptr) : memory_(memory) {}
  static constexpr int kGap = 16;  // no array's end is the next one's beginning
#endif

  template <class T>
  __host__ __device__ T* take(int count) {
    char* p = memory_ + used_;
    const int bytes = (count * int(sizeof(T)) + 15) / 16 * 16;
#if !defined(__CUDACC__)
    if (memory_) emulation::allot(p, count * sizeof(T));
#endif
    used_ += bytes + kGap;
    return reinterpret_cast<T*>(p);
  }
  __host__ __device__ int used() const { return used_; }

 private:
  char* memory_;
  int used_ = 0;
};

// The memory the launch gave this block.
FASTCSM_INLINE char* block_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) char fastcsm_block_memory[];
  return fastcsm_block_memory;
#else
  return emulation::shared_memory();
#endif
}

// The thread's number in its block, and x, read anew: what is computed from them takes no registers before.
FASTCSM_INLINE int thread_number() {
#if defined(__CUDACC__)
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
#else
  return int(threadIdx.x);
#endif
}
FASTCSM_INLINE int anew(int x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

FASTCSM_INLINE float from_storage(float x) { return x; }
FASTCSM_INLINE float from_storage(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// Two bfloat16, the first in the lower half, rounded to nearest even; NaN stays NaN.
FASTCSM_INLINE uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const auto round = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  return round(high) << 16 | round(low);
#endif
}

// The nearest tf32 (10 bits of fraction), ties to even: 8193 x keeps the bits of x that a tf32 has (Veltkamp). Two
// multiplications, where the unit's own conversion is three slower instructions; numbers above 2^114 become NaN.
FASTCSM_INLINE float round_tf32(float x) { return fmaf(-8192.f, x, 8193.f * x); }

// 1 / x, 1 / sqrt(x), 2^x, log2(x), sin and cos(x) for |x| <= pi, and tanh(x) by the special function units, numbers
// below 2^-126 being zero. The errors are a few units in the last place of the result, of log2, sin and cos of 1, but
// tanh's 2^-11 of the result; the twin rounds it as much.
FASTCSM_INLINE float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
FASTCSM_INLINE float fast_reciprocal_root(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / sqrtf(x);
#endif
}
FASTCSM_INLINE float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
FASTCSM_INLINE float fast_log2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}
FASTCSM_INLINE float fast_sin(float x) {
#if defined(__CUDACC__)
  float y;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return sinf(x);
#endif
}
FASTCSM_INLINE float fast_cos(float x) {
#if defined(__CUDACC__)
  float y;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return cosf(x);
#endif
}
FASTCSM_INLINE float fast_tanh(float x) {
#if defined(__CUDACC__)
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return round_tf32(tanhf(x));
#endif
}

// x as products of precision P take it.
template <Precision P>
FASTCSM_INLINE Element<P> to_element(float x) {
  if constexpr (P == Precision::bf16) {
    return {uint16_t(pack_bf16(x, 0.f))};
  } else if constexpr (P == Precision::tf32) {
    return round_tf32(x);
  } else {
    return x;
  }
}

// Two elements side by side; p is aligned to both.
template <Precision P>
FASTCSM_INLINE void store_pair(Element<P>* p, float x, float y) {
  if constexpr (P == Precision::bf16) {
    *reinterpret_cast<uint32_t*>(p) = pack_bf16(x, y);
  } else {
    *reinterpret_cast<float2*>(p) = make_float2(to_element<P>(x), to_element<P>(y));
  }
}

template <class T>
FASTCSM_INLINE T to_storage(float x) {
  if constexpr (sizeof(T) == 2) {
    return {uint16_t(pack_bf16(x, 0.f))};
  } else {
    return x;
  }
}

// Fragments of mma.sync.m16n8: A is 16 x kDepth, B is kDepth x 8, the accumulator 16 x 8. With g = lane / 4 and
// t = lane % 4 the accumulator holds rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1. Those of float32 are
// two of tf32, one after the other.
template <Precision P>
struct FragmentA {
  uint32_t r[P == Precision::exact ? 8 : 4];
};
template <Precision P>
struct FragmentB {
  uint32_t r[P == Precision::exact ? 4 : 2];
};
struct Accumulator {
  float r[4];
};

// Columns of A that one product takes; and how many products' operands are loaded together, where that is done.
template <Precision P>
constexpr int kDepth = P == Precision::tf32 ? 8 : 16;
template <Precision P>
constexpr int kTogether = P == Precision::exact ? 1 : 2;

// Four 8 x 8 matrices of 16-bit elements, or 8 x 4 of 32-bit ones: lane i brings the address of row i % 8 of matrix i /
// 8 and gets 32 bits of each matrix, row i / 4; transposed, which is for 16 bits only, column i / 4.
template <bool kTransposed>
FASTCSM_INLINE void load_matrices(uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#else
  emulation::load_matrices(r, row, kTransposed);
#endif
}

// The sum of three bfloat16 that x is, and the same of y, side by side.
FASTCSM_INLINE void split_pair(uint32_t x, uint32_t y, uint32_t& high, uint32_t& middle, uint32_t& low) {
  float a = __uint_as_float(x), b = __uint_as_float(y);
  const auto take = [&] {
    const uint32_t pair = pack_bf16(a, b);
    a -= __uint_as_float(pair << 16);
    b -= __uint_as_float(pair & 0xffff0000u);
    return pair;
  };
  high = take();
  middle = take();
  low = pack_bf16(a, b);
}
// Operands of exact products as sums of three. Columns t, t + 4, t + 8 and t + 12 take the places of those that a lane
// has in bfloat16.
struct SplitA {
  FragmentA<Precision::bf16> part[3];

  SplitA() = default;
  FASTCSM_INLINE explicit SplitA(const FragmentA<Precision::exact>& a) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = i / 2 * 4 + i % 2;
      split_pair(a.r[first], a.r[first + 2], part[0].r[i], part[1].r[i], part[2].r[i]);
    }
  }
};
struct SplitB {
  FragmentB<Precision::bf16> part[3];

  SplitB() = default;
  FASTCSM_INLINE explicit SplitB(const FragmentB<Precision::exact>& b) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      split_pair(b.r[2 * i], b.r[2 * i + 1], part[0].r[i], part[1].r[i], part[2].r[i]);
    }
  }
};

// x as the sum of two tf32, to 22 bits: the unit drops those bits of the rest that it cannot hold.
FASTCSM_INLINE void split_tf32(uint32_t x, uint32_t& high, uint32_t& low) {
  const float value = __uint_as_float(x), kept = round_tf32(value);
  high = __float_as_uint(kept);
  low = __float_as_uint(value - kept) + 0x1000u;
}
struct PairA {
  FragmentA<Precision::tf32> high[2], low[2];

  PairA() = default;
  FASTCSM_INLINE explicit PairA(const FragmentA<Precision::exact>& a) {
#pragma unroll
    for (int i = 0; i < 8; ++i) split_tf32(a.r[i], high[i / 4].r[i % 4], low[i / 4].r[i % 4]);
  }
};
struct PairB {
  FragmentB<Precision::tf32> high[2], low[2];

  PairB() = default;
  FASTCSM_INLINE explicit PairB(const FragmentB<Precision::exact>& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(b.r[i], high[i / 2].r[i % 2], low[i / 2].r[i % 2]);
  }
};

// What products take: a fragment, or what it is split into once for all of them.
template <Precision P>
using OperandA = std::conditional_t<P == Precision::exact, PairA, FragmentA<P>>;
template <Precision P>
using OperandB = std::conditional_t<P == Precision::exact, PairB, FragmentB<P>>;

// c += a b, one matrix instruction on bfloat16 (16 deep) or tf32 (8 deep).
template <Precision P>
FASTCSM_INLINE void multiply_add(Accumulator& c, const FragmentA<P>& a, const FragmentB<P>& b) {
#if defined(__CUDACC__)
  if constexpr (P == Precision::bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  }
#else
  emulation::multiply_add(c.r, a.r, b.r, P == Precision::bf16);
#endif
}

// The product of two sums of three: that of the first ones, whose sum over 16 columns a float32 mostly holds without
// rounding, and the next five, the smallest first. The last three are left out.
FASTCSM_INLINE void multiply_add_first(Accumulator& c, const SplitA& a, const SplitB& b) {
  multiply_add(c, a.part[0], b.part[0]);
}
FASTCSM_INLINE void multiply_add_rest(Accumulator& c, const SplitA& a, const SplitB& b) {
  multiply_add(c, a.part[2], b.part[0]);
  multiply_add(c, a.part[0], b.part[2]);
  multiply_add(c, a.part[1], b.part[1]);
  multiply_add(c, a.part[1], b.part[0]);
  multiply_add(c, a.part[0], b.part[1]);
}

// c += a b in float32, without a bias: where many sums of one sign are added up, as in a density. It takes more
// instructions than pairs of tf32, and the same time of matrix units.
FASTCSM_INLINE void multiply_add(Accumulator& c, const SplitA& a, const SplitB& b) {
  Accumulator first = {}, rest = {};
  multiply_add_rest(rest, a, b);
  multiply_add_first(first, a, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) c.r[i] += first.r[i] + rest.r[i];
}

// c += a b in float32, three products for each of two tf32. A sum loses some 2^-24 of itself on average.
FASTCSM_INLINE void multiply_add(Accumulator& c, const PairA& a, const PairB& b) {
  Accumulator sum = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    multiply_add(sum, a.low[i], b.high[i]);
    multiply_add(sum, a.high[i], b.low[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) multiply_add(sum, a.high[i], b.high[i]);
#pragma unroll
  for (int i = 0; i < 4; ++i) c.r[i] += sum.r[i];
}

// Copies kBytes, 16 or 4, from device to shared memory while the thread goes on, or zeros unless inside; both places
// are aligned to kBytes. The copy belongs to the group that commit_copies ends next.
template <int kBytes>
FASTCSM_INLINE void copy_async(void* to, const void* from, bool inside) {
  static_assert(kBytes == 16 || kBytes == 4);
#if defined(__CUDACC__)
  const uint32_t address = uint32_t(__cvta_generic_to_shared(to));
  const int bytes = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  }
#else
  char value[kBytes] = {};
  if (inside) std::memcpy(value, from, kBytes);
  emulation::copy_async(to, from, value, kBytes);
#endif
}
FASTCSM_INLINE void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::commit_copies();
#endif
}
// Waits until all of this thread's copies but those of its last kGroups groups are there; a barrier makes them known to
// others.
template <int kGroups>
FASTCSM_INLINE void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  emulation::wait_copies(kGroups);
#endif
}

// A from 16 rows of memory: a[i][k] = p[i * stride + k].
template <Precision P>
FASTCSM_INLINE void load_a(FragmentA<P>& a, const Element<P>* p, int stride, int lane) {
  const Element<P>* row = p + (lane % 16) * stride + (lane / 16) * (16 / int(sizeof(*p)));
  if constexpr (P == Precision::exact) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t r[4];
      load_matrices<false>(r, row + 8 * half);
#pragma unroll
      for (int i = 0; i < 4; ++i) a.r[4 * half + i] = r[i];
    }
  } else {
    load_matrices<false>(a.r, row);
  }
}

// A from 16 columns of memory: a[i][k] = p[k * stride + i].
template <Precision P>
FASTCSM_INLINE void load_a_transposed(FragmentA<P>& a, const Element<P>* p, int stride, int lane) {
  if constexpr (P == Precision::bf16) {
    load_matrices<true>(a.r, p + (lane % 8 + lane / 16 * 8) * stride + (lane / 8 % 2) * 8);
  } else {
    const float* q = p + (lane % 4) * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < kDepth<P> / 2; ++i) a.r[i] = __float_as_uint(q[(i / 2) * 4 * stride + (i % 2) * 8]);
  }
}

// Two B side by side, 16 columns, each in a row of memory: b[k][j] = p[j * stride + k].
template <Precision P>
FASTCSM_INLINE void load_b_transposed(FragmentB<P> (&b)[2], const Element<P>* p, int stride, int lane) {
  const Element<P>* row = p + (lane % 8 + lane / 16 * 8) * stride + (lane / 8 % 2) * (16 / int(sizeof(*p)));
#pragma unroll
  for (int half = 0; half < (P == Precision::exact ? 2 : 1); ++half) {
    uint32_t r[4];
    load_matrices<false>(r, row + 8 * half);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].r[2 * half + i % 2] = r[i];
  }
}

// kTogether B one below the other, 8 columns, each in a row of memory: b[i][k][j] = p[j * stride + i * kDepth + k].
template <Precision P>
FASTCSM_INLINE void load_b_deep(FragmentB<P> (&b)[kTogether<P>], const Element<P>* p, int stride, int lane) {
  constexpr int kWords = 4 / kTogether<P>;
  uint32_t r[4];
  load_matrices<false>(r, p + (lane % 8) * stride + (lane / 8) * (16 / int(sizeof(*p))));
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / kWords].r[i % kWords] = r[i];
}

// Two B side by side, 16 columns, as they lie in memory: b[k][j] = p[k * stride + j].
template <Precision P>
FASTCSM_INLINE void load_b(FragmentB<P> (&b)[2], const Element<P>* p, int stride, int lane) {
  if constexpr (P == Precision::bf16) {
    uint32_t r[4];
    load_matrices<true>(r, p + (lane % 16) * stride + (lane / 16) * 8);
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  } else {
    constexpr int kWords = kDepth<P> / 4;
    const float* q = p + (lane % 4) * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 2 * kWords; ++i) {
      b[i / kWords].r[i % kWords] = __float_as_uint(q[(i % kWords) * 4 * stride + (i / kWords) * 8]);
    }
  }
}

// A stride for rows of `columns` elements, at which eight rows of 16 bytes lie in different banks.
template <class T>
__host__ __device__ constexpr int padded_stride(int columns) {
  const int chunk = 16 / int(sizeof(T)), chunks = (columns + chunk - 1) / chunk;
  return (chunks % 2 ? chunks : chunks + 1) * chunk;
}

__host__ __device__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace fastcsm
