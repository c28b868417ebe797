// Matrices of any layout as operands of micro-kernels: words along K, each with the rows or columns of a tile beside
// each other. No include guard: included once per instruction set.

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Word k of a column or row pair: an element, or under FASTCSM_REDUCED two.
template <class T>
FASTCSM_INLINE T word(T low, T high) {
#if FASTCSM_REDUCED
  const uint32_t pair = bf16_bits(low) | bf16_bits(high) << 16;
  __builtin_memcpy(&low, &pair, 4);
#endif
  (void)high;
  return low;
}
constexpr int64_t kPerWord = FASTCSM_REDUCED ? 2 : 1;

// Words [k][width] of a matrix given by rows: row(k) points at its elements, the first valid(k) of which count; the
// rest are zero, as are rows at or beyond K.
template <class T, class Row, class Valid>
FASTCSM_INLINE void pack_rows(T* out, int64_t K, int64_t width, Row row, Valid valid) {
  for (int64_t k = 0; k < words<T>(K); ++k, out += width) {
    const T *low = nullptr, *high = nullptr;
    int64_t n = 0, m = 0;
    if (kPerWord * k < K) low = row(kPerWord * k), n = std::min(width, std::max<int64_t>(0, valid(kPerWord * k)));
    if (FASTCSM_REDUCED && 2 * k + 1 < K)
      high = row(2 * k + 1), m = std::min(width, std::max<int64_t>(0, valid(2 * k + 1)));
    const int64_t both = FASTCSM_REDUCED ? std::min(n, m) : n;
    int64_t j = 0;
    for (; j < both; ++j) out[j] = word(low[j], FASTCSM_REDUCED ? high[j] : T(0));
    for (; j < width; ++j) out[j] = word(j < n ? low[j] : T(0), j < m ? high[j] : T(0));
  }
}

// The same of a matrix given by columns: column(j) points at its elements, j < cols.
template <class T, class Column, class Valid>
FASTCSM_INLINE void pack_columns(T* out, int64_t K, int64_t width, int64_t cols, Column column, Valid valid) {
  for (int64_t j = 0; j < width; ++j) {
    const T* from = j < cols ? column(j) : nullptr;
    const int64_t n = j < cols ? std::min(K, std::max<int64_t>(0, valid(j))) : 0;
    int64_t k = 0;
    for (; k < n / kPerWord; ++k)
      out[k * width + j] = word(from[kPerWord * k], FASTCSM_REDUCED ? from[2 * k + 1] : T(0));
    for (; k < words<T>(K); ++k) out[k * width + j] = word(kPerWord * k < n ? from[kPerWord * k] : T(0), T(0));
  }
}
