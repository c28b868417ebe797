// How matrix units add, for the machine and for csrc/emulation/.
//
// Their sums truncate: a few products and the accumulator are aligned to the largest of them, cut off a bit or two
// below float32's last, added, and cut off again. How many at once and where is as measured by Fasi, Higham, Mikaitis
// and Pranesh (2021) and by Khattak and Mikaitis (arXiv:2512.07004).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace machine {

enum Element : uint8_t { kHalf, kBfloat, kTf32 };

struct Unit {
  int at_once, extra;  // products of one sum, bits kept below float32's last
};
inline Unit unit_of(int architecture, uint8_t element) {
  if (architecture < 90) return {element == kTf32 ? 4 : 8, 1};
  return {element == kTf32 ? 8 : 16, 2};
}

// Eight columns at a time.
typedef double Eight __attribute__((vector_size(64)));
typedef int64_t Whole __attribute__((vector_size(64)));
typedef float Narrow __attribute__((vector_size(32)));
typedef int32_t Bits __attribute__((vector_size(32)));

inline Eight magnitude(Eight x) { return Eight(Whole(x) & INT64_MAX); }
inline Eight larger(Eight x, Eight y) { return x < y ? y : x; }
// Without its fraction, of at most 2^51.
inline Eight whole_part(Eight x) {
  const Eight size = magnitude(x), near = (size + 0x1p52) - 0x1p52;
  const Eight less = near > size ? near - 1.0 : near;
  return Eight(Whole(less) | (Whole(x) & INT64_MIN));
}
inline Eight to_float_toward_zero(Eight x) {
  const Narrow near = __builtin_convertvector(x, Narrow);
  const Whole beyond = magnitude(__builtin_convertvector(near, Eight)) > magnitude(x);  // -1 or 0
  return __builtin_convertvector(Narrow(Bits(near) + __builtin_convertvector(beyond, Bits)), Eight);
}

inline Eight add_products(Eight c, const double* a, const double* b, int n, int columns, Unit unit) {
  Eight terms[16], largest = magnitude(c), all = c;
  for (int k = 0; k < n; ++k) {
    Eight row;
    std::memcpy(&row, b + k * columns, sizeof row);
    terms[k] = a[k] * row;
    largest = larger(largest, magnitude(terms[k]));
    all += terms[k];
  }
  Whole exponent = (Whole(largest) >> 52) - (23 + unit.extra);
  exponent = exponent < 1 ? Whole{} + 1 : exponent;
  const Eight inverse = Eight((2046 - exponent) << 52);
  Eight sum = whole_part(c * inverse);
  for (int k = 0; k < n; ++k) sum += whole_part(terms[k] * inverse);
  const Eight out = to_float_toward_zero(sum * Eight(exponent << 52));
  return all - all == Eight{} ? out : all;  // where an operand is infinite or NaN, so is the sum
}

// c (columns) += a (depth) b (depth, columns), of one row.
inline void multiply_row(double* c, const double* a, const double* b, int depth, int columns, Unit unit) {
  for (int first = 0; first < columns; first += 8) {
    Eight sum;
    std::memcpy(&sum, c + first, sizeof sum);
    for (int k = 0; k < depth; k += unit.at_once) {
      sum = add_products(sum, a + k, b + k * columns + first, std::min(depth - k, unit.at_once), columns, unit);
    }
    std::memcpy(c + first, &sum, sizeof sum);
  }
}

}  // namespace machine
