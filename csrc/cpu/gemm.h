// Products of the small matrices of a row tile. Everything lies in cache, so nothing is packed but the weights:
//   gemm     C (M, N) = [C0 +] A (M, K) B (K, N)         B packed
//   gemm_tn  C (M, N) = [C0 +] A (K, M)^T B (K, N)       A and B row-major
// C0 (nullptr for none) has C's layout and may be C itself; N is a multiple of the vector width. Each element of C is
// one chain of multiply-adds over k in ascending order, so a row's result does not depend on where in a tile, or in
// which tile, the row lies. Under FASTCSM_REDUCED a float product runs on pairs: a 32-bit word holds the bfloat16 of
// elements k and k+1, the multiply-add becomes the processor's two-element dot product, and K halves; operands that are
// not weights are rounded into scratch first, which costs a few percent of the product. Under FASTCSM_TILES the words
// go through tiles of 16 by 16. No include guard: included once per instruction set.

#if FASTCSM_VECTOR_BYTES == 64
constexpr int kMicroRows = 12;
#else
constexpr int kMicroRows = 6;
#endif
constexpr int kMicroVectors = 2;

template <class T>
constexpr int kPanel = kMicroVectors * Vec<T>::W;

// Words along K of an operand: elements, or pairs of them.
template <class T>
constexpr int64_t words(int64_t k) {
  return FASTCSM_TILES ? (k + 31) / 32 * 16 : FASTCSM_REDUCED ? (k + 1) / 2 : k;
}

// B is read in panels of kMicroVectors vectors: word (k, n) of panel q lies at b + q * panel + k * ldb + n.
template <class T>
constexpr int64_t panels_size(int64_t k, int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T> * words<T>(k);
}

template <class T>
FASTCSM_INLINE uint32_t bf16_bits(T x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return f != f ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // round to nearest even
}

// Packs the (rows, cols) matrix whose element (i, j) is at(i, j) into panels.
template <class T, class At>
void pack_panels(T* out, int64_t rows, int64_t cols, At at) {
  for (int64_t q = 0; q * kPanel<T> < cols; ++q) {
    for (int64_t i = 0; i < words<T>(rows); ++i) {
      for (int64_t j = q * kPanel<T>; j < (q + 1) * kPanel<T>; ++j, ++out) {
        if constexpr (FASTCSM_REDUCED) {
          const uint32_t low = j < cols && 2 * i < rows ? bf16_bits(at(2 * i, j)) : 0;
          const uint32_t high = j < cols && 2 * i + 1 < rows ? bf16_bits(at(2 * i + 1, j)) : 0;
          const uint32_t pair = low | high << 16;
          __builtin_memcpy(out, &pair, 4);
        } else {
          *out = j < cols ? at(i, j) : T(0);
        }
      }
    }
  }
}

#if !FASTCSM_REDUCED
// The same of a matrix whose row i lies at w + i * ld.
template <class T>
void pack_panels_of_rows(T* out, int64_t rows, int64_t cols, const T* w, int64_t ld) {
  for (int64_t n = 0; n < cols; n += kPanel<T>) {
    const int64_t valid = std::min<int64_t>(kPanel<T>, cols - n);
    for (int64_t i = 0; i < rows; ++i, out += kPanel<T>) {
      const T* from = w + i * ld + n;
      if (valid == kPanel<T>) {
        __builtin_memcpy(out, from, kPanel<T> * sizeof(T));
      } else {
        for (int64_t j = 0; j < kPanel<T>; ++j) out[j] = j < valid ? from[j] : T(0);
      }
    }
  }
}

// Four elements of a and b, where b's are numbered from 4 on.
template <int i, int j, int k, int l, class Four>
FASTCSM_INLINE Four shuffled(Four a, Four b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  const auto at = [&](int n) { return n < 4 ? a[n] : b[n - 4]; };
  return Four{at(i), at(j), at(k), at(l)};
#endif
}

// The same of a matrix whose column j lies at w + j * ld, by blocks of four by four.
template <class T>
void pack_panels_of_columns(T* out, int64_t rows, int64_t cols, const T* w, int64_t ld) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  const auto load = [](const T* p) {
    Four v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  };
  for (int64_t n = 0; n < cols; n += kPanel<T>, out += rows * kPanel<T>) {
    int64_t i = 0;
    for (; n + kPanel<T> <= cols && i + 4 <= rows; i += 4) {
      for (int64_t j = 0; j < kPanel<T>; j += 4) {
        const T* p = w + (n + j) * ld + i;
        const Four a = load(p), b = load(p + ld), c = load(p + 2 * ld), d = load(p + 3 * ld);
        const Four ab = shuffled<0, 4, 1, 5>(a, b), cd = shuffled<0, 4, 1, 5>(c, d);
        const Four ab2 = shuffled<2, 6, 3, 7>(a, b), cd2 = shuffled<2, 6, 3, 7>(c, d);
        const Four rows_of[] = {shuffled<0, 1, 4, 5>(ab, cd), shuffled<2, 3, 6, 7>(ab, cd),
                                shuffled<0, 1, 4, 5>(ab2, cd2), shuffled<2, 3, 6, 7>(ab2, cd2)};
        for (int k = 0; k < 4; ++k) __builtin_memcpy(out + (i + k) * kPanel<T> + j, &rows_of[k], sizeof(Four));
      }
    }
    for (; i < rows; ++i)
      for (int64_t j = 0; j < kPanel<T>; ++j) out[i * kPanel<T> + j] = n + j < cols ? w[(n + j) * ld + i] : T(0);
  }
}
#endif

template <class T, bool kPairs>
FASTCSM_INLINE typename Vec<T>::N multiply_add(typename Vec<T>::N a, typename Vec<T>::N b, typename Vec<T>::N c) {
#if FASTCSM_REDUCED
  if constexpr (kPairs) return (typename Vec<T>::N)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
  return c + a * b;
}

// Word (i, k) of A lies at a + i * row + k * col; one of the two strides is 1.
template <class T, int MR, int NV, bool kTransposed, bool kPairs = FASTCSM_REDUCED>
void micro_kernel(int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb, const T* c0, T* c, int64_t ldc) {
  using N = typename Vec<T>::N;
  using U = typename VecTypes<T>::U;
  constexpr int W = Vec<T>::W;
  N acc[MR][NV];
  if (c0 != nullptr) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = *reinterpret_cast<const U*>(c0 + i * ldc + j * W);
  } else {
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = N{};
  }
  // Three rows hang on one pointer (+0, +lda, +2 lda are addressing modes), so 12 rows take four.
  constexpr int Q = (MR + 2) / 3;
  const T* p[Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) p[q] = kTransposed ? a : a + 3 * q * lda;
  for (int64_t k = 0; k < K; ++k) {
    N bv[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) bv[j] = *reinterpret_cast<const U*>(b + j * W);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
      const N av = Vec<T>(kTransposed ? a[i] : p[i / 3][(i % 3) * lda]).v;
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = multiply_add<T, kPairs>(av, bv[j], acc[i][j]);
    }
    b += ldb;
    if constexpr (kTransposed) {
      a += lda;
    } else {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) ++p[q];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) *reinterpret_cast<U*>(c + i * ldc + j * W) = acc[i][j];
}

template <class T, int NV, bool kTransposed, bool kPairs = FASTCSM_REDUCED, int MR = kMicroRows>
FASTCSM_INLINE void micro_rest(int64_t rows, int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb, const T* c0,
                               T* c, int64_t ldc) {
  if constexpr (MR > 0) {
    if (rows == MR) {
      micro_kernel<T, MR, NV, kTransposed, kPairs>(K, a, lda, b, ldb, c0, c, ldc);
    } else {
      micro_rest<T, NV, kTransposed, kPairs, MR - 1>(rows, K, a, lda, b, ldb, c0, c, ldc);
    }
  }
}

template <class T, bool kTransposed>
void gemm_words(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t panel, int64_t ldb,
                const T* c0, T* c, int64_t ldc) {
  for (int64_t n = 0; n < N; n += kPanel<T>) {
    const T* bn = b + n / kPanel<T> * panel;
    for (int64_t m = 0; m < M; m += kMicroRows) {
      const T* am = a + (kTransposed ? m : m * lda);
      T* cm = c + m * ldc + n;
      const T* c0m = c0 == nullptr ? nullptr : c0 + m * ldc + n;
      const int64_t rows = M - m < kMicroRows ? M - m : kMicroRows;
      if (N - n >= kPanel<T>) {
        micro_rest<T, kMicroVectors, kTransposed>(rows, K, am, lda, bn, ldb, c0m, cm, ldc);
      } else {
        micro_rest<T, 1, kTransposed>(rows, K, am, lda, bn, ldb, c0m, cm, ldc);
      }
    }
  }
}

#if FASTCSM_REDUCED
// Rows of pairs (k, k+1) of one row, zero beyond k; the word stride keeps whole vectors.
FASTCSM_INLINE int64_t pair_stride(int64_t k) { return (words<float>(k) + 15) / 16 * 16; }
inline void pairs_along_rows(int64_t rows, int64_t k, const float* a, int64_t lda, float* out) {
  for (int64_t r = 0; r < rows; ++r, a += lda, out += pair_stride(k)) {
    for (int64_t j = 0; j < k; j += 32) {
      const uint32_t valid = k - j >= 32 ? ~0u : (1u << (k - j)) - 1;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid), a + j);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid >> 16), a + j + 16);
      _mm512_storeu_si512(out + j / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

// The 16 words of pairs (r, r+1) in columns [j, j+16); rows at or beyond `rows` are zero.
FASTCSM_INLINE __m512i pairs_of_rows(int64_t r, int64_t rows, const float* a, int64_t lda, int64_t j) {
  const __m512i halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                          23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512 low = r < rows ? _mm512_loadu_ps(a + r * lda + j) : _mm512_setzero_ps();
  const __m512 high = r + 1 < rows ? _mm512_loadu_ps(a + (r + 1) * lda + j) : _mm512_setzero_ps();
  return _mm512_permutexvar_epi16(halves, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
inline void pairs_across_rows(int64_t rows, int64_t cols, const float* a, int64_t lda, float* out, int64_t ldo) {
  for (int64_t w = 0; w < words<float>(rows); ++w)
    for (int64_t j = 0; j < cols; j += 16)
      _mm512_storeu_si512(out + w * ldo + j, pairs_of_rows(2 * w, rows, a, lda, j));
}
#endif

#if FASTCSM_TILES
// pairs_across_rows, transposed: word (r / 2) of column j at out[j * ldo + r / 2].
inline void pairs_across_rows_transposed(int64_t rows, int64_t cols, const float* a, int64_t lda, float* out,
                                         int64_t ldo) {
  alignas(64) uint32_t block[16][16];
  for (int64_t w = 0; w < words<float>(rows); w += 16) {
    for (int64_t j = 0; j < cols; j += 16) {
      for (int i = 0; i < 16; ++i) _mm512_store_si512(block[i], pairs_of_rows(2 * (w + i), rows, a, lda, j));
      const __m512i step = _mm512_mullo_epi32(_mm512_set1_epi32(16),
                                              _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
      for (int i = 0; i < 16; ++i)
        _mm512_storeu_si512(out + (j + i) * ldo + w, _mm512_i32gather_epi32(step, &block[0][i], 4));
    }
  }
}

// One block of up to 32 by 32 of C. Tiles 0-3: C[0:16, 0:16], C[0:16, 16:32], C[16:32, 0:16], C[16:32, 16:32].
inline void tile_block(int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, bool add) {
  if (add) {
    FASTCSM_TILE_LOAD(0, c, 128);
    FASTCSM_TILE_LOAD(1, c + 16, 128);
    FASTCSM_TILE_LOAD(2, c + 16 * 32, 128);
    FASTCSM_TILE_LOAD(3, c + 16 * 32 + 16, 128);
  } else {
    FASTCSM_TILE_ZERO(0);
    FASTCSM_TILE_ZERO(1);
    FASTCSM_TILE_ZERO(2);
    FASTCSM_TILE_ZERO(3);
  }
  for (int64_t k = 0; k < K; k += 16) {
    FASTCSM_TILE_LOAD(4, a + k, lda * 4);
    FASTCSM_TILE_LOAD(6, b + k * ldb, ldb * 4);
    FASTCSM_TILE_LOAD(7, b + k * ldb + 16, ldb * 4);
    FASTCSM_TILE_LOAD(5, a + 16 * lda + k, lda * 4);
    FASTCSM_TILE_DOT(0, 4, 6);
    FASTCSM_TILE_DOT(1, 4, 7);
    FASTCSM_TILE_DOT(2, 5, 6);
    FASTCSM_TILE_DOT(3, 5, 7);
  }
  FASTCSM_TILE_STORE(0, c, 128);
  FASTCSM_TILE_STORE(1, c + 16, 128);
  FASTCSM_TILE_STORE(2, c + 16 * 32, 128);
  FASTCSM_TILE_STORE(3, c + 16 * 32 + 16, 128);
}

// C = [C0 +] A B over words; A may be read up to 31 rows past its end, B up to 16 columns. C goes through a block of
// its own, so that no row or column beyond M and N is written.
inline void gemm_tiles(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const float* b, int64_t panel,
                       int64_t ldb, const float* c0, float* c, int64_t ldc) {
  alignas(64) float block[32 * 32];
  FASTCSM_TILES_BEGIN();
  for (int64_t n = 0; n < N; n += 32) {
    const int64_t cols = N - n < 32 ? N - n : 32;
    for (int64_t m = 0; m < M; m += 32) {
      const int64_t rows = M - m < 32 ? M - m : 32;
      for (int64_t i = 0; c0 != nullptr && i < rows; ++i) memcpy(block + i * 32, c0 + (m + i) * ldc + n, cols * 4);
      tile_block(K, a + m * lda, lda, b + n / 32 * panel, ldb, block, c0 != nullptr);
      for (int64_t i = 0; i < rows; ++i) memcpy(c + (m + i) * ldc + n, block + i * 32, cols * 4);
    }
  }
  FASTCSM_TILES_END();
}
#endif

// Words of scratch that the products of a tile may need: (rows, cols) bounds every operand.
template <class T>
constexpr int64_t gemm_scratch(int64_t rows, int64_t cols) {
  return FASTCSM_REDUCED ? (rows + 64) * (cols + 64) + (FASTCSM_TILES ? (cols + 64) * (rows / 2 + 32) : 0) : 0;
}

template <class T>
void gemm(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* panels, const T* c0, T* c, int64_t ldc,
          T* scratch) {
#if FASTCSM_REDUCED
  pairs_along_rows(M, K, a, lda, scratch);
  a = scratch;
  lda = pair_stride(K);
#endif
  const int64_t k = words<T>(K);
#if FASTCSM_TILES
  gemm_tiles(M, N, k, a, lda, panels, kPanel<T> * k, kPanel<T>, c0, c, ldc);
#else
  gemm_words<T, false>(M, N, k, a, lda, panels, kPanel<T> * k, kPanel<T>, c0, c, ldc);
#endif
}

template <class T>
void gemm_tn(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb, const T* c0, T* c,
             int64_t ldc, T* scratch) {
  const int64_t k = words<T>(K);
#if FASTCSM_REDUCED
  const int64_t ldo = (N / 16 + 2) | 1;  // in vectors: room for a whole panel, an odd number
  pairs_across_rows(K, N, b, ldb, scratch, 16 * ldo);
  b = scratch, ldb = 16 * ldo;
  T* a_pairs = scratch + k * ldb;
#endif
#if FASTCSM_TILES
  pairs_across_rows_transposed(K, M, a, lda, a_pairs, k);
  gemm_tiles(M, N, k, a_pairs, k, b, kPanel<T>, ldb, c0, c, ldc);
#else
#if FASTCSM_REDUCED
  const int64_t lda_pairs = 16 * ((M + 15) / 16 | 1);
  pairs_across_rows(K, M, a, lda, a_pairs, lda_pairs);
  a = a_pairs, lda = lda_pairs;
#endif
  gemm_words<T, true>(M, N, k, a, lda, b, kPanel<T>, ldb, c0, c, ldc);
#endif
}
