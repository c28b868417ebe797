// Lets g++ compile and run the sources of csrc/cuda/ on the host: a test instrument, never a backend.
//
// A block's threads are fibers of one host thread, run one after another from barrier to barrier; blocks follow each
// other. One host thread a CUDA thread, with std::barrier and under ThreadSanitizer, took 34 to 85 times the time (on
// two cores, 33 rows of 2 x 128 units: score_head 6.8 s for 0.08, csm_loss 21 s for 0.6), as every fragment goes
// through a barrier of the warp. It found the planted races that fibers find, and those in device memory, which are
// recorded here too; it hung where barriers diverge and saw no read before a write.
//
// Reported, by a sentence on stderr and abort():
//   - barrier divergence: threads that wait at different barriers, or wait while others of the block or warp are gone;
//   - a race, that is two accesses of which one writes, by different threads with no barrier in between or in device
//     memory by different blocks of a launch;
//   - of shared memory: a read before any write, and an access outside what was allotted;
//   - by AddressSanitizer and UBSan, under which the sources are compiled: accesses outside of tensors, misaligned
//     vectors, overflows.
// Not seen: uninitialised registers, bank conflicts, what depends on warps running at once (a missing fence), limits of
// registers and shared memory. Matrix units add as Ampere's do, and as bench/machine has it (sums.h): four products of
// tf32 or eight of bfloat16 and the accumulator at a time, cut off one bit below float32's last, where Hopper's take
// twice as many and keep two bits.
//
// The compiler's calls to AddressSanitizer's checks pass through this file's (-Wl,--wrap), which is how accesses to
// memory are known; kernels are written as usual. They use no static __shared__ memory, but cuda/device.h's
// SharedMemory.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Of the thread that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

using Place = std::source_location;

// Runs body(closure) in every thread of every block.
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* closure);

// The block's dynamic shared memory, and a part of it that may be used.
char* shared_memory();
void allot(const void* begin, size_t bytes);

void block_barrier(Place at);
// Returns when all lanes of the warp have called it, with what lane i brought at 64 i bytes; fence: a barrier for
// shared memory too.
const char* exchange(const void* mine, size_t bytes, bool fence, Place at);

// Twins of the matrix instructions in cuda/device.h, with the fragments' real layouts.
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Place at = Place::current());
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16,
                  Place at = Place::current());

// Twins of the asynchronous copies: `value` reaches its place when the thread waits for the copy's group, no sooner.
void copy_async(void* to, const void* from, const void* value, size_t bytes);
void commit_copies();
void wait_copies(int groups);

// *p += by at once; p as it was. Races of these with other accesses go unseen.
unsigned atomic_add(unsigned* p, unsigned by);

// Counts an access of the running thread to shared memory; the compiler's own accesses are counted already.
void shared_access(const void* p, size_t bytes, bool write);

}  // namespace emulation

inline void __syncthreads(emulation::Place at = emulation::Place::current()) { emulation::block_barrier(at); }
inline void __syncwarp(unsigned = 0xffffffffu, emulation::Place at = emulation::Place::current()) {
  emulation::exchange(nullptr, 0, true, at);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane, int width = 32, emulation::Place at = emulation::Place::current()) {
  const int from = (int(threadIdx.x % 32) / width) * width + lane % width;
  T result;
  std::memcpy(&result, emulation::exchange(&value, sizeof(T), false, at) + 64 * from, sizeof(T));
  return result;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32, emulation::Place at = emulation::Place::current()) {
  T result;
  std::memcpy(&result, emulation::exchange(&value, sizeof(T), false, at) + 64 * ((threadIdx.x % 32) ^ mask), sizeof(T));
  return result;
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by, int = 32, emulation::Place at = emulation::Place::current()) {
  const unsigned lane = threadIdx.x % 32, from = lane + by < 32 ? lane + by : lane;
  T result;
  std::memcpy(&result, emulation::exchange(&value, sizeof(T), false, at) + 64 * from, sizeof(T));
  return result;
}

inline unsigned __ballot_sync(unsigned, bool value, emulation::Place at = emulation::Place::current()) {
  const char* slots = emulation::exchange(&value, sizeof value, false, at);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= unsigned(slots[64 * lane] != 0) << lane;
  return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

inline unsigned atomicAdd(unsigned* p, unsigned by) { return emulation::atomic_add(p, by); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline float cospif(float x) { return float(std::cos(std::remainder(double(x), 2.0) * 3.14159265358979323846)); }
inline void sincospif(float x, float* s, float* c) {
  const double turn = std::remainder(double(x), 2.0) * 3.14159265358979323846;
  *s = float(std::sin(turn));
  *c = float(std::cos(turn));
}
