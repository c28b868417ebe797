#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastcsm {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__)
// Bits of CPUID leaf 7: AVX512_BF16 is subleaf 1 EAX 5; AMX-BF16 and AMX-TILE are subleaf 0 EDX 22 and 24.
bool has_bf16_products() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// Tiles are a large register state that Linux gives a process on request only.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!has_bf16_products()) return Isa::avx512;
  return has_tiles() ? Isa::amx : Isa::avx512_bf16;
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
  static const Isa best = best_isa();
  return {kNames, kNames + static_cast<int>(best) + 1};
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

}  // namespace fastcsm
