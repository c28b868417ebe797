// Which instruction set runs is decided once, when the library is loaded; set_isa lets tests ask for a lower one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastcsm {

// A ladder: each has all below it. The last two matter only to products that may round their operands to bfloat16.
enum class Isa { baseline, avx2, avx512, avx512_bf16, amx };

Isa current_isa();
void set_isa(const std::string& name);
std::string isa_name();
std::vector<std::string> available_isas();

// Multiply-adds of the widest instruction at a precision, on registers alone and on every thread; returns how many
// operations were done, two a multiply-add.
double peak(std::string precision, int64_t rounds);

// Calls fn from the namespace of the chosen instruction set; reduced: products may round their operands to bfloat16.
#if defined(__x86_64__)
#define FASTCSM_DISPATCH(fn, reduced, args)                       \
  {                                                               \
    const ::fastcsm::Isa isa = ::fastcsm::current_isa();          \
    if ((reduced) && isa >= ::fastcsm::Isa::amx) {                \
      amx::fn(args);                                              \
    } else if ((reduced) && isa >= ::fastcsm::Isa::avx512_bf16) { \
      avx512_bf16::fn(args);                                      \
    } else if (isa >= ::fastcsm::Isa::avx512) {                   \
      avx512::fn(args);                                           \
    } else if (isa >= ::fastcsm::Isa::avx2) {                     \
      avx2::fn(args);                                             \
    } else {                                                      \
      baseline::fn(args);                                         \
    }                                                             \
  }
#else
#define FASTCSM_DISPATCH(fn, reduced, args) baseline::fn(args)
#endif

}  // namespace fastcsm
