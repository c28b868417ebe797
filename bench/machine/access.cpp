// What all accesses to memory share: addresses, alignment, bounds.
#include "access.h"

namespace machine {

void note_if(Warp& w, int lane, const char* wrong) {
  if (wrong) note(w, lane, wrong);
}

void expect_shared(Warp& w, int lane, uint64_t address, int bytes, const char* what) {
  if (address + bytes <= w.block->memory.size() && address < kLocalWindow) return;
  fault(w, lane,
        std::string(what) + " shared memory out of bounds: " + std::to_string(bytes) + " bytes at byte " +
            std::to_string(int64_t(address)) + " of " + std::to_string(w.block->memory.size()));
}

// Addresses of an instruction's lanes; option bit 0: the base has 64 bits.
std::array<uint64_t, 32> addresses(Warp& w, uint32_t base, int64_t offset, bool wide) {
  std::array<uint64_t, 32> out;
  for (int lane = 0; lane < 32; ++lane) {
    out[lane] = wide ? w.at<uint64_t>(base)[lane] + uint64_t(offset) : w.at<uint32_t>(base)[lane] + uint32_t(offset);
  }
  return out;
}

Space space_of(Space named, uint64_t& address) {
  if (named != Space::generic) return named;
  if (address >= kSharedWindow) return address -= kSharedWindow, Space::shared;
  if (address >= kParameterWindow) return address -= kParameterWindow, Space::parameter;
  if (address >= kLocalWindow) return address -= kLocalWindow, Space::local;
  return Space::global;
}

void expect_aligned(Warp& w, int lane, uint64_t address, int bytes) {
  if (address % bytes) {
    fault(w, lane,
          "misaligned: " + std::to_string(bytes) + " bytes at an address that is " + std::to_string(address % bytes) +
              " past a multiple of it");
  }
}

Space named_space(Decoder& d) {
  for (const std::string& word : d.statement->op) {
    if (word.compare(0, 6, "shared") == 0) return Space::shared;
    if (word == "global" || word == "const") return Space::global;
    if (word == "local") return Space::local;
    if (word.compare(0, 5, "param") == 0) return Space::parameter;
  }
  return Space::generic;
}

}  // namespace machine
