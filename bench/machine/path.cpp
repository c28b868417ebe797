// The longest chain of dependences: how long a block would take were every instruction issued as soon as its operands
// are there. Latencies are those of Ampere and Hopper as microbenchmarks found them, in cycles, in round numbers.
#include "decode.h"

namespace machine {
namespace {

constexpr uint32_t kBarrier = 20, kBranch = 10, kDeviceMemory = 500;

bool is(const Instruction& i, const char* word) { return i.source->op[0] == word; }

uint32_t latest(const Warp& w, const Instruction& i) {
  uint32_t at = w.clock.floor;
  for (uint32_t r : i.reads) at = std::max(at, w.clock.ready[r]);
  return at;
}

}  // namespace

uint32_t latency_of(const Instruction& i) {
  const std::string& type = i.source->op.back();
  switch (i.kind) {
    case Kind::integer:
      return type == "s64" || type == "u64" ? 8 : is(i, "div") || is(i, "rem") ? 60 : 4;
    case Kind::float32:
      return is(i, "div") ? 40 : 4;
    case Kind::float64:
      return is(i, "div") ? 120 : 8;
    case Kind::half:
      return 5;
    case Kind::special:
      return is(i, "div") ? 32 : 20;
    case Kind::convert:
      return 8;
    case Kind::move:
    case Kind::parameter:
      return 0;
    case Kind::load_global:
      return kDeviceMemory;
    case Kind::load_shared:
      return 28;
    case Kind::local:
      return 32;
    case Kind::matrix:
      return 32;
    case Kind::matrix_memory:
      return 32;
    case Kind::shuffle:
      return 24;
    case Kind::atomic:
      return 60;
    default:
      return 4;
  }
}

void follow(Warp& w, const Instruction& i) {
  Clock& clock = w.clock;
  const uint32_t begins = latest(w, i);
  uint32_t ends = begins + i.latency;
  if (i.flow == Flow::branch || i.flow == Flow::table) {
    if (i.guard >= 0) clock.floor = std::max(clock.floor, begins + kBranch);
  } else if (i.asynchronous && i.kind == Kind::matrix) {
    // All four matrix units work for a warpgroup: 4096 operations of bf16 a cycle, 2048 of tf32.
    const uint32_t cycles = uint32_t(2 * 64 * 16 * i.number / 4096);
    ends = clock.products = std::max(begins, clock.products) + std::max(cycles, 8u);
  } else if (is(i, "wgmma")) {
    if (i.source->op[1] == "wait_group") clock.floor = std::max(clock.floor, clock.products + i.latency);
  } else if (i.kind == Kind::copy) {
    if (i.source->op[2] == "commit_group") {
      clock.groups.push_back(clock.copied);
    } else if (i.source->op[2] == "wait_group" || i.source->op[2] == "wait_all") {
      const size_t left = size_t(std::max<int64_t>(i.number, 0));
      if (clock.groups.size() > left) {
        clock.floor = std::max(clock.floor, clock.groups[clock.groups.size() - 1 - left]);
      }
    } else {
      clock.copied = std::max(clock.copied, begins + kDeviceMemory);
    }
  } else if (i.flow == Flow::barrier) {
    clock.last = std::max(clock.last, begins) + kBarrier;
  }
  for (uint32_t r : i.writes) clock.ready[r] = ends;
  if (i.kind != Kind::copy) clock.last = std::max(clock.last, ends);
}

}  // namespace machine
