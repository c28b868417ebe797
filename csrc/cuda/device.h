// The vocabulary of the kernels: shared memory, fragments of matrices, rounding. Everything that is not plain C++ on
// the device has a twin here for csrc/emulation/.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulation/cuda_emulation.h"
#endif

#define FASTCSM_INLINE __device__ __forceinline__

#include "common/head.h"

namespace fastcsm {

constexpr int kWarp = 32;

// How products of matrices are done: bfloat16 operands; tf32 operands; or float32 operands as sums of two tf32 each,
// whose three products are as accurate as float32. All accumulate in float32.
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

// 1 / x, 2^x, log2(x), sin and cos(x) for |x| <= pi, and tanh(x) by the special function units, numbers below 2^-126
// being zero. The errors are a few units in the last place of the result, of log2, sin and cos of 1, but tanh's 2^-11
// of the result; the twin rounds it as much.
FASTCSM_INLINE float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
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
// t = lane % 4 the accumulator holds rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1.
struct FragmentA {
  uint32_t r[4];
};
struct FragmentB {
  uint32_t r[2];
};
struct Accumulator {
  float r[4];
};

// Columns of A that one product takes: 32 bytes of them.
template <class T>
constexpr int kDepth = 32 / int(sizeof(T));

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

// c += a b, one matrix instruction on bfloat16 (16 deep) or tf32 (8 deep).
template <bool kBf16>
FASTCSM_INLINE void multiply_add(Accumulator& c, const FragmentA& a, const FragmentB& b) {
#if defined(__CUDACC__)
  if constexpr (kBf16) {
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
  emulation::multiply_add(c.r, a.r, b.r, kBf16);
#endif
}

// x as the sum of two tf32, to 22 bits: the unit drops those bits of the rest that it cannot hold.
FASTCSM_INLINE void split_tf32(uint32_t x, uint32_t& high, uint32_t& low) {
  const float value = __uint_as_float(x), kept = round_tf32(value);
  high = __float_as_uint(kept);
  low = __float_as_uint(value - kept) + 0x1000u;
}

// c += a b in precision P.
template <Precision P>
FASTCSM_INLINE void multiply_add(Accumulator& c, const FragmentA& a, const FragmentB& b) {
  if constexpr (P == Precision::exact) {
    FragmentA ah, al;
    FragmentB bh, bl;
#pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(a.r[i], ah.r[i], al.r[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) split_tf32(b.r[i], bh.r[i], bl.r[i]);
    multiply_add<false>(c, al, bh);
    multiply_add<false>(c, ah, bl);
    multiply_add<false>(c, ah, bh);
  } else {
    multiply_add<P == Precision::bf16>(c, a, b);
  }
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
template <class T>
FASTCSM_INLINE void load_a(FragmentA& a, const T* p, int stride, int lane) {
  load_matrices<false>(a.r, p + (lane % 16) * stride + (lane / 16) * (kDepth<T> / 2));
}

// A from 16 columns of memory: a[i][k] = p[k * stride + i].
template <class T>
FASTCSM_INLINE void load_a_transposed(FragmentA& a, const T* p, int stride, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices<true>(a.r, p + (lane % 8 + lane / 16 * 8) * stride + (lane / 8 % 2) * 8);
  } else {
    const T* q = p + (lane % 4) * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.r[i] = __float_as_uint(q[(i / 2) * 4 * stride + (i % 2) * 8]);
  }
}

// Two B side by side, 16 columns, each in a row of memory: b[k][j] = p[j * stride + k].
template <class T>
FASTCSM_INLINE void load_b_transposed(FragmentB (&b)[2], const T* p, int stride, int lane) {
  uint32_t r[4];
  load_matrices<false>(r, p + (lane % 8 + lane / 16 * 8) * stride + (lane / 8 % 2) * (kDepth<T> / 2));
  b[0] = {{r[0], r[1]}};
  b[1] = {{r[2], r[3]}};
}

// Two B one below the other, 8 columns, each in a row of memory: b[i][k][j] = p[j * stride + i * kDepth + k].
template <class T>
FASTCSM_INLINE void load_b_deep(FragmentB (&b)[2], const T* p, int stride, int lane) {
  uint32_t r[4];
  load_matrices<false>(r, p + (lane % 8) * stride + (lane / 8) * (kDepth<T> / 2));
  b[0] = {{r[0], r[1]}};
  b[1] = {{r[2], r[3]}};
}

// Two B side by side, 16 columns, as they lie in memory: b[k][j] = p[k * stride + j].
template <class T>
FASTCSM_INLINE void load_b(FragmentB (&b)[2], const T* p, int stride, int lane) {
  if constexpr (sizeof(T) == 2) {
    uint32_t r[4];
    load_matrices<true>(r, p + (lane % 16) * stride + (lane / 16) * 8);
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  } else {
    const T* q = p + (lane % 4) * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].r[i % 2] = __float_as_uint(q[(i % 2) * 4 * stride + (i / 2) * 8]);
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
