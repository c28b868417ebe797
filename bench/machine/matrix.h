// What matrix units of all kinds share: elements, and sums that truncate.
#pragma once

#include "decode.h"
#include "numbers.h"

namespace machine {

enum Element : uint8_t { kHalf, kBfloat, kTf32 };
constexpr int kMostColumns = 256;

struct Unit {
  int at_once, extra;  // products of one sum, bits kept below float32's last
};
Unit unit_of(int architecture, uint8_t element);
inline int size_of(uint8_t element) { return element == kTf32 ? 4 : 2; }
inline double to_value(uint32_t bits, uint8_t element) {
  if (element == kTf32) return to_float(bits & 0xffffe000u);
  return element == kHalf ? Half{uint16_t(bits)}.value() : Bfloat{uint16_t(bits)}.value();
}
bool element_of(const std::string& type, uint8_t& element);
// c (columns) += a (depth) b (depth, columns), of one row.
void multiply_row(double* c, const double* a, const double* b, int depth, int columns, Unit unit);

}  // namespace machine
