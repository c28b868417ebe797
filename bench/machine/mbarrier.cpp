// Barriers that are objects in shared memory, which warps arrive at and wait for in phases.
#include "access.h"

namespace machine {
namespace {

// option: 1 the address has 64 bits, 2 the phase is given by its parity.
MemoryBarrier& barrier_at(Warp& w, const Instruction& i, uint32_t base, int lane) {
  const uint64_t address = addresses(w, base, i.number, i.option & 1)[lane];
  expect_shared(w, lane, address, 8, "an mbarrier in");
  expect_aligned(w, lane, address, 8);
  const auto found = w.block->barriers.find(uint32_t(address));
  if (found == w.block->barriers.end()) fault(w, lane, "an mbarrier that was not initialised");
  return found->second;
}

void initialise(Warp& w, const Instruction& i) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const uint64_t address = addresses(w, i.a[0], i.number, i.option & 1)[lane];
    const uint64_t nothing = 0;
    write_shared(w, lane, address, 8, &nothing);
    MemoryBarrier barrier;
    barrier.expected = barrier.missing = w.at<uint32_t>(i.a[1])[lane];
    if (barrier.expected == 0) fault(w, lane, "an mbarrier of no arrivals");
    w.block->barriers[uint32_t(address)] = barrier;
  }
}

void invalidate(Warp& w, const Instruction& i) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    barrier_at(w, i, i.a[0], lane);
    w.block->barriers.erase(uint32_t(addresses(w, i.a[0], i.number, i.option & 1)[lane]));
  }
}

void arrive(Warp& w, const Instruction& i) {
  SharedShadow& shadow = w.block->shadow;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    MemoryBarrier& barrier = barrier_at(w, i, i.a[1], lane);
    w.at<uint64_t>(i.a[0])[lane] = barrier.phase;
    for (int v = 0; v < shadow.warps; ++v) {
      barrier.clock[v] = std::max(barrier.clock[v], shadow.clock[w.index][v]);
      barrier.proxied[v] = std::max(barrier.proxied[v], shadow.proxied[w.index][v]);
    }
    const uint32_t n = i.a[2] ? w.at<uint32_t>(i.a[2])[lane] : 1;
    if (n > barrier.missing) fault(w, lane, "more arrivals at an mbarrier than it expects");
    barrier.missing -= n;
    if (barrier.missing == 0) {
      ++barrier.phase;
      barrier.missing = barrier.expected;
    }
  }
  shadow.tick(w.index);
}

void wait(Warp& w, const Instruction& i) {
  SharedShadow& shadow = w.block->shadow;
  uint32_t over = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const MemoryBarrier& barrier = barrier_at(w, i, i.a[1], lane);
    const bool passed = i.option & 2 ? (barrier.phase & 1) != (w.at<uint32_t>(i.a[2])[lane] & 1)
                                     : barrier.phase != w.at<uint64_t>(i.a[2])[lane];
    if (!passed) continue;
    over |= 1u << lane;
    for (int v = 0; v < shadow.warps; ++v) {
      if (v != w.index) shadow.clock[w.index][v] = std::max(shadow.clock[w.index][v], barrier.clock[v]);
      shadow.proxied[w.index][v] = std::max(shadow.proxied[w.index][v], barrier.proxied[v]);
    }
  }
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  *to = (*to & ~w.mask) | over;
  w.yields = over != w.mask;
}

}  // namespace

bool decode_mbarrier(Decoder& d) {
  if (d.word(0) != "mbarrier" || d.type() != "b64" || d.has("expect_tx") || d.has("shared::cluster")) return false;
  bool wide = false;
  const std::string& what = d.word(1);
  d.now.kind = Kind::barrier;
  if (what == "init" || what == "inval") {
    d.address(d.operand(0), 0, d.now.number, wide);
    if (what == "init") d.now.a[1] = d.value(d.operand(1), 4);
    d.now.step = what == "init" ? initialise : invalidate;
  } else if (what == "arrive") {
    d.now.a[0] = d.value(d.operand(0), 8);
    d.address(d.operand(1), 1, d.now.number, wide);
    if (d.operands() > 2) d.now.a[2] = d.value(d.operand(2), 4);
    d.now.step = arrive;
  } else if (what == "test_wait" || what == "try_wait") {
    const bool parity = d.has("parity");
    d.now.a[0] = d.value(d.operand(0), 0);
    d.address(d.operand(1), 1, d.now.number, wide);
    d.now.a[2] = d.value(d.operand(2), parity ? 4 : 8);
    d.now.option = parity ? 2 : 0;
    d.now.step = wait;
  } else {
    return false;
  }
  d.now.option |= wide;
  return true;
}

}  // namespace machine
