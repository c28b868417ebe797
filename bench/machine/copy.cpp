// Asynchronous copies: they arrive when they are waited for, not before.
#include "access.h"

namespace machine {
namespace {

void copy(Warp& w, const Instruction& i) {
  const auto to = addresses(w, i.a[0], i.number, i.option & 1);
  const auto from = addresses(w, i.a[1], i.second, i.option & 2);
  uint32_t reading = 0;
  SharedShadow& shadow = w.block->shadow;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const int given = i.more.empty() ? i.bytes : int(w.at<uint32_t>(i.more[0])[lane]);
    if (given > i.bytes) fault(w, lane, "a copy of more bytes than it has place for");
    Copy c{uint32_t(to[lane]), lane, -1, i.bytes, {}};
    expect_shared(w, lane, to[lane], i.bytes, "a copy to");
    expect_aligned(w, lane, to[lane], i.bytes);
    if (given) {
      expect_aligned(w, lane, from[lane], i.bytes);
      read_global(w, lane, from[lane], given, c.value.data());
      reading |= 1u << lane;
    }
    note_if(w, lane, shadow.note_write(w.index, lane, to[lane], i.bytes, w.block->launch->checks));
    std::fill_n(shadow.coming.begin() + to[lane], i.bytes, uint8_t(1));
    w.copies.push_back(c);
  }
  count_global(w, from.data(), reading, i.bytes, false);
  count_shared(w, to.data(), w.mask, i.bytes);
}

void end_copies(Warp& w, const Instruction&) {
  for (Copy& c : w.copies) {
    if (c.group < 0 && w.mask >> c.lane & 1) c.group = w.copy_groups[c.lane];
  }
  each(w.mask, [&](int lane) { ++w.copy_groups[lane]; });
}

// number: how many groups may go on, or -1 for none, ended or not.
void wait_copies(Warp& w, const Instruction& i) {
  std::vector<Copy> left;
  for (const Copy& c : w.copies) {
    const bool ended = c.group >= 0 || i.number < 0;
    const bool arrives = w.mask >> c.lane & 1 && ended && (i.number < 0 || c.group < w.copy_groups[c.lane] - i.number);
    if (!arrives) {
      left.push_back(c);
      continue;
    }
    std::fill_n(w.block->shadow.coming.begin() + c.to, c.bytes, uint8_t(0));
    w.block->shadow.note_write(w.index, c.lane, c.to, c.bytes, false, true);
    std::memcpy(w.block->memory.data() + c.to, c.value.data(), c.bytes);
  }
  w.copies = std::move(left);
}

bool copies(Decoder& d) {
  d.now.kind = Kind::copy;
  if (d.has("commit_group")) {
    d.now.step = end_copies;
  } else if (d.has("wait_group") || d.has("wait_all")) {
    d.now.step = wait_copies;
    d.now.number = d.has("wait_all") ? -1 : d.number(d.operand(0));
  } else if (d.word(1) == "async" && d.has("global") && !d.has("bulk") && !d.has("mbarrier")) {
    bool to_wide = false, from_wide = false;
    d.address(d.operand(0), 0, d.now.number, to_wide);
    d.address(d.operand(1), 1, d.now.second, from_wide);
    d.now.bytes = uint8_t(d.number(d.operand(2)));
    if (d.operands() > 3) d.now.more.push_back(d.value(d.operand(3), 4));
    d.now.option = uint8_t(to_wide | from_wide << 1);
    d.now.step = copy;
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool decode_copy(Decoder& d) { return d.word(0) == "cp" && copies(d); }

}  // namespace machine
