// What an access costs: wavefronts of shared memory, sectors of device memory.
#include "access.h"

namespace machine {

void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, int bytes) {
  Counts& counts = w.block->launch->counts;
  if (!lanes) return;
  ++counts.shared_accesses;
  // 128 bytes at a time: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16.
  const int at_once = bytes <= 4 ? 32 : 128 / bytes, words = std::max(bytes / 4, 1);
  uint64_t distinct = 0, wavefronts = 0;
  for (int first = 0; first < 32; first += at_once) {
    uint32_t seen[32][32];
    int depth[32] = {}, most = 0;
    for (int lane = first; lane < first + at_once; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int k = 0; k < words; ++k) {
        const uint32_t word = uint32_t(address[lane] / 4) + k;
        const int bank = word % 32;
        bool known = false;
        for (int d = 0; d < depth[bank]; ++d) known |= seen[bank][d] == word;
        if (known) continue;
        seen[bank][depth[bank]++] = word;
        most = std::max(most, depth[bank]);
        ++distinct;
      }
    }
    wavefronts += most;
  }
  counts.shared_wavefronts += wavefronts;
  counts.shared_least += (distinct + 31) / 32;
}

void count_matrix_rows(Warp& w, const uint64_t* rows, int n) {
  Counts& counts = w.block->launch->counts;
  ++counts.shared_accesses;
  counts.shared_least += n;
  for (int k = 0; k < n; ++k) {
    int depth[8] = {}, most = 0;
    for (int r = 0; r < 8; ++r) {
      bool known = false;
      for (int before = 0; before < r; ++before) known |= rows[8 * k + before] == rows[8 * k + r];
      if (!known) most = std::max(most, ++depth[rows[8 * k + r] / 16 % 8]);
    }
    counts.shared_wavefronts += most;
  }
}

void count_global(Warp& w, const uint64_t* address, uint32_t lanes, int bytes, bool write) {
  Counts& counts = w.block->launch->counts;
  if (!lanes) return;
  const uint16_t origin = origin_of(w, w.block->launch->program->code[w.pc]);
  ++counts.device_accesses;
  counts.traced += origin != kNowhere && origin != kSeveralTensors;
  uint64_t sectors[64], pieces[32];
  int n = 0, m = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (uint64_t sector = address[lane] / 32; sector <= (address[lane] + bytes - 1) / 32; ++sector) {
      bool known = false;
      for (int k = n - 1; k >= 0 && !known; --k) known = sectors[k] == sector;
      if (!known && n < 64) sectors[n++] = sector;
    }
    bool known = false;
    for (int k = m - 1; k >= 0 && !known; --k) known = pieces[k] == address[lane];
    if (!known) pieces[m++] = address[lane];
  }
  counts.global_sectors += n;
  counts.global_least += (uint64_t(m) * bytes + 31) / 32;
  (write ? counts.bytes_written : counts.bytes_read) += uint64_t(m) * bytes;
}

}  // namespace machine
