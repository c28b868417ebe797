#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace fastcsm {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512"};

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(best_isa())};
  return isa;
}

}  // namespace

Isa current_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

std::string isa_name() { return kNames[static_cast<int>(current_isa())]; }

std::vector<std::string> available_isas() {
  return {kNames, kNames + static_cast<int>(best_isa()) + 1};
}

void set_isa(const std::string& name) {
  const std::vector<std::string> names = available_isas();
  std::string known;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) {
      chosen().store(static_cast<int>(i));
      return;
    }
    known += (i ? ", " : "") + names[i];
  }
  throw std::invalid_argument("isa: got '" + name + "', expected one of: " + known + " (what this processor has)");
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  static const bool found = best_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  return found && current_isa() == Isa::avx512;
#else
  return false;
#endif
}

}  // namespace fastcsm
