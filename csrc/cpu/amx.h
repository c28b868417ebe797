// The matrix tiles of AMX: eight registers of 16 rows of 64 bytes. Tiles 0-3 accumulate, 4-5 hold A, 6-7 hold B.
// FASTCSM_EMULATE_AMX replaces them by plain arrays, so that the code that uses them is tested on any processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastcsm {

#if defined(FASTCSM_EMULATE_AMX)
struct EmulatedTiles {
  uint32_t word[8][16][16];
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
inline float emulated_bf16(uint32_t bits) {
  float f;
  bits <<= 16;
  memcpy(&f, &bits, 4);
  return f;
}
inline void emulated_load(int t, const void* p, int64_t bytes) {
  for (int i = 0; i < 16; ++i) memcpy(emulated_tiles().word[t][i], static_cast<const char*>(p) + i * bytes, 64);
}
inline void emulated_store(int t, void* p, int64_t bytes) {
  for (int i = 0; i < 16; ++i) memcpy(static_cast<char*>(p) + i * bytes, emulated_tiles().word[t][i], 64);
}
inline void emulated_zero(int t) { memset(emulated_tiles().word[t], 0, sizeof emulated_tiles().word[t]); }
inline void emulated_dot(int c, int a, int b) {
  EmulatedTiles& t = emulated_tiles();
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      float sum;
      memcpy(&sum, &t.word[c][i][j], 4);
      for (int k = 0; k < 16; ++k) {
        const uint32_t x = t.word[a][i][k], y = t.word[b][k][j];
        sum += emulated_bf16(x & 0xffff) * emulated_bf16(y & 0xffff) + emulated_bf16(x >> 16) * emulated_bf16(y >> 16);
      }
      memcpy(&t.word[c][i][j], &sum, 4);
    }
}
#define FASTCSM_TILE_LOAD(t, p, bytes) ::fastcsm::emulated_load(t, p, bytes)
#define FASTCSM_TILE_STORE(t, p, bytes) ::fastcsm::emulated_store(t, p, bytes)
#define FASTCSM_TILE_ZERO(t) ::fastcsm::emulated_zero(t)
#define FASTCSM_TILE_DOT(c, a, b) ::fastcsm::emulated_dot(c, a, b)
#define FASTCSM_TILES_BEGIN()
#define FASTCSM_TILES_END()
#elif defined(__x86_64__)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfig kTileConfig;
#define FASTCSM_TILE_LOAD(t, p, bytes) _tile_loadd(t, p, bytes)
#define FASTCSM_TILE_STORE(t, p, bytes) _tile_stored(t, p, bytes)
#define FASTCSM_TILE_ZERO(t) _tile_zero(t)
#define FASTCSM_TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#define FASTCSM_TILES_BEGIN() _tile_loadconfig(&::fastcsm::kTileConfig)
#define FASTCSM_TILES_END() _tile_release()
#endif

}  // namespace fastcsm
