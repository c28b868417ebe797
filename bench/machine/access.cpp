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

// Within the tensor that the address was made from, or where that is not known, within any.
void expect_device(Warp& w, int lane, uint64_t address, int bytes, const char* what) {
  const Launch& launch = *w.block->launch;
  const uint16_t origin = origin_of(w, launch.program->code[w.pc]);
  const Range* own = origin == kNowhere || origin == kSeveralTensors ? nullptr : &launch.memory.ranges[origin - 1];
  const auto in_any = [&] { return launch.memory.find(address, bytes) != nullptr; };
  if (own ? address >= own->begin && address + bytes <= own->end : in_any()) return;
  std::string where = launch.memory.outside(address, bytes);
  if (own && in_any()) where += "; it was made from the address of " + own->name;
  fault(w, lane, std::string(what) + " device memory out of bounds: " + where);
}

uint16_t origin_of(const Warp& w, const Instruction& i) {
  const uint32_t at = i.kind == Kind::copy || i.kind == Kind::atomic ? i.a[1] : i.a[0];
  return w.origin.empty() ? kNowhere : w.origin[at / 64];
}

void track(Warp& w, const Instruction& i) {
  const auto joined = [](uint16_t a, uint16_t b) {
    return a == kNowhere || a == b ? b : b == kNowhere ? a : kSeveralTensors;
  };
  const auto put = [&](uint32_t r, uint16_t from) {
    w.origin[r] = w.mask == w.live ? from : joined(w.origin[r], from);
  };
  if (i.kind == Kind::parameter) {
    const Memory& memory = w.block->launch->memory;
    for (uint32_t r : i.writes) {
      uint16_t from = kNowhere;
      uint64_t before = 0;
      for (int lane = 0; lane < 32; ++lane) {
        const uint64_t pointer = w.at<uint64_t>(64 * r)[lane];
        if (!(w.mask >> lane & 1) || pointer == before) continue;
        before = pointer;
        const Range* range = memory.find(pointer, 1);
        if (range) from = joined(from, uint16_t(range - memory.ranges.data() + 1));
      }
      put(r, from);
    }
    return;
  }
  uint16_t from = kNowhere;
  // What memory holds is an offset at most.
  const bool loaded = i.kind == Kind::load_global || i.kind == Kind::load_shared || i.kind == Kind::atomic;
  for (size_t k = 0; k < i.reads.size() && !loaded; ++k) from = joined(from, w.origin[i.reads[k]]);
  for (uint32_t r : i.writes) put(r, from);
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
