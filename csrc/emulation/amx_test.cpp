// Runs the products of csrc/cpu/gemm.h on emulated matrix tiles, against sums in double of the same rounded operands,
// in buffers of exactly the sizes the kernels give them. Prints the worst error; exits with 1 when a result is wrong.
#define FASTCSM_EMULATE_AMX
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/amx.h"
#include "cpu/value_table.h"

#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define FASTCSM_REDUCED 1
#define FASTCSM_TILES 1
#define FASTCSM_VECTOR_BYTES 64
namespace tiles {
#include "cpu/simd.h"
#include "cpu/gemm.h"

double rounded(float x) {
  const uint32_t bits = bf16_bits(x) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// Largest difference from the double sums, over the sum of absolute products.
double check(int64_t M, int64_t N, int64_t K, bool transposed, bool add) {
  const int64_t padded_n = (N + 15) / 16 * 16, lda = (transposed ? M : K) + 32, ldb = padded_n + 16, ldc = padded_n;
  const int64_t a_rows = transposed ? K : M;
  std::vector<float> a(a_rows * lda), b(K * ldb), c0(M * ldc), c(M * ldc, NAN);
  for (float* p : {a.data(), b.data(), c0.data()}) {
    const size_t n = p == a.data() ? a.size() : p == b.data() ? b.size() : c0.size();
    for (size_t i = 0; i < n; ++i) p[i] = float(drand48() - 0.5);
  }
  const int64_t bound_rows = transposed ? K : M, bound_cols = std::max(std::max(M, padded_n), K);
  std::vector<float> scratch(gemm_scratch<float>(bound_rows, transposed ? std::max(M, padded_n) : bound_cols), NAN);
  if (transposed) {
    gemm_tn<float>(M, padded_n, K, a.data(), lda, b.data(), ldb, add ? c0.data() : nullptr, c.data(), ldc,
                   scratch.data());
  } else {
    std::vector<float> panels(panels_size<float>(K, padded_n));
    pack_panels(panels.data(), K, padded_n, [&](int64_t i, int64_t j) { return b[i * ldb + j]; });
    gemm<float>(M, padded_n, K, a.data(), lda, panels.data(), add ? c0.data() : nullptr, c.data(), ldc, scratch.data());
  }
  double worst = 0;
  for (int64_t i = 0; i < M; ++i) {
    for (int64_t j = 0; j < N; ++j) {
      double sum = add ? c0[i * ldc + j] : 0, size = 1e-3 + std::fabs(sum);
      for (int64_t k = 0; k < K; ++k) {
        const double term = rounded(transposed ? a[k * lda + i] : a[i * lda + k]) * rounded(b[k * ldb + j]);
        sum += term;
        size += std::fabs(term);
      }
      const double error = std::fabs(c[i * ldc + j] - sum) / size;
      worst = error > worst || std::isnan(error) ? (std::isnan(error) ? INFINITY : error) : worst;
    }
  }
  return worst;
}
}  // namespace tiles
#pragma GCC pop_options

int main() {
  if (!__builtin_cpu_supports("avx512bf16")) {
    std::puts("skipped: this processor does not round to bfloat16");
    return 0;
  }
  double worst = 0;
  const int64_t sizes[] = {1, 15, 16, 17, 31, 32, 33, 64, 96, 127};
  for (int64_t M : sizes)
    for (int64_t N : sizes)
      for (int64_t K : sizes)
        for (int mode = 0; mode < 4; ++mode) worst = std::max(worst, tiles::check(M, N, K, mode & 1, mode & 2));
  std::printf("worst error %.3g\n", worst);
  return worst < 2e-6 ? 0 : 1;
}
