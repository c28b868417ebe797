// Atomics, each lane's after the one before it.
#include <type_traits>

#include "access.h"

namespace machine {
namespace {

enum Change : uint8_t { kAdd, kExchange, kLeast, kMost, kAnd, kOr, kXor, kCompare };

template <class T>
T changed(T old, T by, T other, uint8_t change) {
  if constexpr (std::is_integral_v<T>) {
    if (change == kAnd) return T(old & by);
    if (change == kOr) return T(old | by);
    if (change == kXor) return T(old ^ by);
  }
  switch (change) {
    case kAdd:
      return T(old + by);
    case kLeast:
      return std::min(old, by);
    case kMost:
      return std::max(old, by);
    case kCompare:
      return old == by ? other : old;
    default:
      return by;
  }
}

template <class T>
void atomic(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[1], i.number, i.option & 1);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], sizeof(T));
    const T by = w.at<T>(i.a[2])[lane], other = w.at<T>(i.a[3])[lane];
    T old;
    if (space == Space::shared) {
      expect_shared(w, lane, at[lane], sizeof(T), "an atomic on");
      if (!w.block->shadow.was_written(at[lane])) note(w, lane, "shared memory read before it was written");
      uint8_t* p = w.block->memory.data() + at[lane];
      std::memcpy(&old, p, sizeof old);
      const T now = changed(old, by, other, i.bytes);
      w.block->shadow.note_write(w.index, lane, at[lane], sizeof(T), false);
      std::memcpy(p, &now, sizeof now);
    } else if (space == Space::global) {
      Memory& memory = w.block->launch->memory;
      expect_device(w, lane, at[lane], sizeof(T), "an atomic on");
      memory.save(memory.page_of(at[lane]), at[lane]);
      void* p = reinterpret_cast<void*>(at[lane]);
      std::memcpy(&old, p, sizeof old);
      const T now = changed(old, by, other, i.bytes);
      std::memcpy(p, &now, sizeof now);
    } else {
      fault(w, lane, "an atomic on memory of one thread");
    }
    w.at<T>(i.a[0])[lane] = old;
  }
}

bool atomics(Decoder& d, bool returns) {
  static const std::pair<const char*, Change> names[] = {{"add", kAdd},  {"exch", kExchange}, {"min", kLeast},
                                                         {"max", kMost}, {"and", kAnd},       {"or", kOr},
                                                         {"xor", kXor},  {"cas", kCompare}};
  bool found = false, wide = false;
  for (const auto& [name, change] : names) {
    if (d.has(name)) d.now.bytes = change, found = true;
  }
  if (!found) return false;
  const int bytes = bytes_of(d.type());
  const bool floating = d.type()[0] == 'f';
  const size_t first = returns ? 1 : 0;
  d.now.kind = Kind::atomic;
  d.now.space = named_space(d);
  d.now.a[0] = d.value(returns ? d.operand(0) : "_", bytes);
  d.address(d.operand(first), 1, d.now.number, wide);
  d.now.option = wide;
  d.now.a[2] = d.value(d.operand(first + 1), bytes, floating);
  d.now.a[3] = d.now.bytes == kCompare ? d.value(d.operand(first + 2), bytes, floating) : d.now.a[2];
  if (d.type() == "f32") d.now.step = atomic<float>;
  if (d.type() == "f64") d.now.step = atomic<double>;
  if (d.type() == "s32") d.now.step = atomic<int32_t>;
  if (d.type() == "u32" || d.type() == "b32") d.now.step = atomic<uint32_t>;
  if (d.type() == "s64") d.now.step = atomic<int64_t>;
  if (d.type() == "u64" || d.type() == "b64") d.now.step = atomic<uint64_t>;
  return d.now.step != nullptr;
}

}  // namespace

bool decode_atomic(Decoder& d) {
  const std::string& op = d.word(0);
  return (op == "atom" || op == "red") && atomics(d, op == "atom");
}

}  // namespace machine
