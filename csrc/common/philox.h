// Philox4x32-10 (Salmon et al., SC 2011) and the noise rule of fastcsm/random.py.
#pragma once

#include <cstdint>

#ifndef FASTCSM_INLINE
#define FASTCSM_INLINE inline __attribute__((always_inline))
#endif

namespace fastcsm {

struct PhiloxWords {
  uint32_t w0, w1;
};

// First two words of the block at counter (c0, c1, c2, c3) under key (k0, k1).
FASTCSM_INLINE PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1};
}

// Stream 0 of the noise rule: the normals of Langevin sampling.
FASTCSM_INLINE PhiloxWords noise_words(uint64_t seed, uint64_t sample, uint32_t dimension, uint32_t step) {
  return philox(step, dimension, uint32_t(sample), uint32_t(sample >> 32), uint32_t(seed), uint32_t(seed >> 32));
}

}  // namespace fastcsm
