// What matrix units of all kinds share: elements.
#pragma once

#include "decode.h"
#include "numbers.h"
#include "sums.h"

namespace machine {

constexpr int kMostColumns = 256;

inline int size_of(uint8_t element) { return element == kTf32 ? 4 : 2; }
inline double to_value(uint32_t bits, uint8_t element) {
  if (element == kTf32) return to_float(bits & 0xffffe000u);
  return element == kHalf ? Half{uint16_t(bits)}.value() : Bfloat{uint16_t(bits)}.value();
}
bool element_of(const std::string& type, uint8_t& element);

}  // namespace machine
