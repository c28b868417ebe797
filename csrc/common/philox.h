// Philox4x32-10 (Salmon et al., SC 2011) and the noise rule of fastcsm/random.py.
#pragma once

#include <cstdint>

#ifndef FASTCSM_INLINE
#define FASTCSM_INLINE inline __attribute__((always_inline))
#endif

namespace fastcsm {

// One round on the block (c0, c1, c2, c3) under key (k0, k1).
FASTCSM_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
  c0 = uint32_t(b >> 32) ^ c1 ^ k0;
  c1 = uint32_t(b);
  c2 = uint32_t(a >> 32) ^ c3 ^ k1;
  c3 = uint32_t(a);
}

// Words 0 and 1 of the blocks at counter (step, dimension, sample) of a stream under the seed, for count <= kLanes rows
// at once, round by round so that rows share vectors.
enum Stream { kNormals, kUniforms };
constexpr int kPhiloxLanes = 16;
template <Stream kStream = kNormals, int kLanes = kPhiloxLanes>
FASTCSM_INLINE void noise_words(uint64_t seed, const int64_t* samples, const int64_t* dimensions, uint32_t step,
                                int count, uint32_t* w0, uint32_t* w1) {
  uint32_t c2[kLanes], c3[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const int j = i < count ? i : 0;
    w0[i] = step;
    w1[i] = static_cast<uint32_t>(dimensions[j]);
    c2[i] = static_cast<uint32_t>(samples[j]);
    c3[i] = static_cast<uint32_t>(static_cast<uint64_t>(samples[j]) >> 32) | kStream << 16;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) philox_round(w0[i], w1[i], c2[i], c3[i], k0, k1);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace fastcsm
