// Which instruction set runs is decided once, when the library is loaded; set_isa lets tests ask for a lower one.
#pragma once

#include <string>
#include <vector>

namespace fastcsm {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

Isa current_isa();
void set_isa(const std::string& name);
std::string isa_name();
std::vector<std::string> available_isas();

// Matrix units for bfloat16 products, used under "medium" precision.
bool has_avx512_bf16();

// Calls fn from the namespace of the chosen instruction set; reduced: products may round their operands to bfloat16.
#if defined(__x86_64__)
#define FASTCSM_DISPATCH(fn, reduced, args)                          \
  if ((reduced) && ::fastcsm::has_avx512_bf16()) {                   \
    avx512_bf16::fn(args);                                           \
  } else {                                                           \
    switch (::fastcsm::current_isa()) {                              \
      case ::fastcsm::Isa::avx512: avx512::fn(args); break;          \
      case ::fastcsm::Isa::avx2: avx2::fn(args); break;              \
      default: baseline::fn(args);                                   \
    }                                                                \
  }
#else
#define FASTCSM_DISPATCH(fn, reduced, args) baseline::fn(args)
#endif

}  // namespace fastcsm
