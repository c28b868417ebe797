// The most multiply-adds a second: those of the widest instruction that the kernels use at a precision, with all
// operands in registers and enough chains to hide its latency. A call's time is the least that its operations can take.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/peak.cpp"
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/launch.h"
#include "cpu/foreach_isa.h"
#endif

#if !FASTCSM_LAUNCHER
namespace fastcsm::FASTCSM_ISA {
namespace {

#include "cpu/simd.h"
#include "cpu/gemm.h"

#if FASTCSM_VECTOR_BYTES == 64 || !defined(__x86_64__)
constexpr int kChains = 24;  // of 32 registers
#else
constexpr int kChains = 12;  // of 16
#endif

#if FASTCSM_TILES
template <class T>
constexpr int64_t kOperations = 2 * 4 * 16 * 16 * 32;  // of a round

void chains(int64_t rounds, volatile float& given) {
  alignas(64) float words[16 * 16];
  for (float& word : words) word = given;
  FASTCSM_TILES_BEGIN();
  FASTCSM_TILE_LOAD(0, words, 64);
  FASTCSM_TILE_LOAD(1, words, 64);
  FASTCSM_TILE_LOAD(2, words, 64);
  FASTCSM_TILE_LOAD(3, words, 64);
  FASTCSM_TILE_LOAD(4, words, 64);
  FASTCSM_TILE_LOAD(6, words, 64);
  for (int64_t round = 0; round < rounds; ++round) {
    FASTCSM_TILE_DOT(0, 4, 6);
    FASTCSM_TILE_DOT(1, 4, 6);
    FASTCSM_TILE_DOT(2, 4, 6);
    FASTCSM_TILE_DOT(3, 4, 6);
  }
  FASTCSM_TILE_STORE(0, words, 64);
  FASTCSM_TILE_STORE(1, words, 64);
  FASTCSM_TILE_STORE(2, words, 64);
  FASTCSM_TILE_STORE(3, words, 64);
  FASTCSM_TILES_END();
  given = words[0];
}
#else
template <class T>
constexpr int64_t kOperations = 2 * kChains * Vec<T>::W * (FASTCSM_REDUCED ? 2 : 1);  // of a round

template <class T>
void chains(int64_t rounds, volatile T& given) {
  const Vec<T> a(T{given}), b(T{given});
  Vec<T> sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = Vec<T>(T{given});
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i)
      sum[i] = FASTCSM_REDUCED ? multiply_add<T, true>(a.v, b.v, sum[i].v) : sum[i].v * a.v + b.v;
  }
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) given = sum[i].sum();
}
#endif

// One thread's share. That what it reads may change at any time keeps the compiler from merging or dropping chains.
template <class T>
void task(void* rounds, int64_t, Arena) {
  volatile T given(0.5);
  chains(*static_cast<const int64_t*>(rounds), given);
}

template <class T>
void peak_typed(PeakArgs& a) {
  const int64_t threads = team(__builtin_inf());
  run_tasks(threads, 0, threads, task<T>, &a.rounds);
  a.operations = static_cast<double>(threads * a.rounds) * static_cast<double>(kOperations<T>);
}

void peak_kernel(PeakArgs& a) {
#if !FASTCSM_REDUCED
  if (a.precision == Storage::f64) return peak_typed<double>(a);
#endif
  peak_typed<float>(a);
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

double peak(std::string precision, int64_t rounds) {
  PeakArgs a{Storage::f32, rounds, 0};
  if (precision == "float64") {
    a.precision = Storage::f64;
  } else if (precision == "bfloat16") {
    a.precision = Storage::bf16;
  } else if (precision != "float32") {
    throw std::invalid_argument("fastcsm: precision must be float32, float64 or bfloat16, got '" + precision + "'");
  }
  if (rounds < 1) throw std::invalid_argument("fastcsm: rounds must be at least 1, got " + std::to_string(rounds));
  FASTCSM_DISPATCH(peak_kernel, a.precision == Storage::bf16, a);
  return a.operations;
}

}  // namespace fastcsm
#endif
