// Instructions by which the lanes of a warp, and the warps of a block, meet.
#include "decode.h"

namespace machine {
namespace {

enum Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };

// a: to, value, by, clamp, lanes; more: a predicate that says whether the source was within reach.
void shuffle(Warp& w, const Instruction& i) {
  const uint32_t* value = w.at<uint32_t>(i.a[1]);
  const uint32_t *by = w.at<uint32_t>(i.a[2]), *clamp = w.at<uint32_t>(i.a[3]);
  std::array<uint32_t, 32> out{};
  uint32_t reached = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const int b = int(by[lane] & 31), segment = int(clamp[lane] >> 8 & 31);
    const int bound = int(clamp[lane] & 31 & ~uint32_t(segment)) | (lane & segment);
    int from = lane;
    bool within = true;
    if (i.option == kUp) from = lane - b, within = from >= bound;
    if (i.option == kDown) from = lane + b, within = from <= bound;
    if (i.option == kButterfly) from = lane ^ b, within = from <= bound;
    if (i.option == kIndex) from = (lane & segment) | (b & ~segment), within = from <= bound;
    if (!within) from = lane;
    if (!(w.mask >> from & 1)) fault(w, lane, "a shuffle from lane " + std::to_string(from) + ", which takes no part");
    out[lane] = value[from];
    reached |= uint32_t(within) << lane;
  }
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = out[lane]; });
  if (!i.more.empty()) {
    uint32_t* p = w.at<uint32_t>(i.more[0]);
    *p = (*p & ~w.mask) | (reached & w.mask);
  }
}

enum Vote : uint8_t { kBallot, kAny, kAll, kUniform };

void vote(Warp& w, const Instruction& i) {
  const uint32_t said = (*w.at<uint32_t>(i.a[1]) ^ (i.number ? kEvery : 0)) & w.mask;
  if (i.option == kBallot) {
    uint32_t* to = w.at<uint32_t>(i.a[0]);
    each(w.mask, [&](int lane) { to[lane] = said; });
    return;
  }
  const bool result = i.option == kAny ? said != 0 : i.option == kAll ? said == w.mask : !said || said == w.mask;
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  *to = (*to & ~w.mask) | (result ? w.mask : 0);
}

template <class T, int kHow>
void reduce(Warp& w, const Instruction& i) {
  const T* value = w.at<T>(i.a[1]);
  T out = value[__builtin_ctz(w.mask)];
  for (int lane = __builtin_ctz(w.mask) + 1; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const T x = value[lane];
    if constexpr (kHow == 0) out = T(uint32_t(out) + uint32_t(x));
    if constexpr (kHow == 1) out = std::min(out, x);
    if constexpr (kHow == 2) out = std::max(out, x);
    if constexpr (kHow == 3) out = T(uint32_t(out) & uint32_t(x));
    if constexpr (kHow == 4) out = T(uint32_t(out) | uint32_t(x));
    if constexpr (kHow == 5) out = T(uint32_t(out) ^ uint32_t(x));
  }
  T* to = w.at<T>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = out; });
}

void warp_barrier(Warp& w, const Instruction&) { w.block->shadow.tick(w.index); }
void proxy_fence(Warp& w, const Instruction&) { w.block->shadow.proxy_fence(w.index); }
void nothing(Warp&, const Instruction&) {}
void trap(Warp& w, const Instruction&) { fault(w, __builtin_ctz(w.mask), "the kernel stops itself"); }

void active(Warp& w, const Instruction& i) {
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = w.mask; });
}
void elect(Warp& w, const Instruction& i) {
  const int leader = __builtin_ctz(w.mask);
  uint32_t* p = w.at<uint32_t>(i.more[0]);
  *p = (*p & ~w.mask) | 1u << leader;
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = uint32_t(leader); });
}

// "a|p" or "a": the register, and the predicate into now.more.
void pair(Decoder& d, int bytes) {
  const Words parts = split(d.operand(0), '|');
  d.now.a[0] = d.value(trim(parts[0]), bytes);
  if (parts.size() > 1) d.now.more.push_back(d.value(trim(parts[1]), 0));
}

bool shuffles(Decoder& d) {
  static const std::pair<const char*, Shuffle> ways[] = {
      {"up", kUp}, {"down", kDown}, {"bfly", kButterfly}, {"idx", kIndex}};
  if (d.word(1) != "sync") return false;
  pair(d, 4);
  for (const auto& [name, way] : ways) {
    if (d.word(2) == name) d.now.option = way;
  }
  for (int k = 1; k < 5; ++k) d.now.a[k] = d.value(d.operand(k), 4);
  d.now.flow = Flow::lanes;
  d.now.step = shuffle;
  return true;
}

bool votes(Decoder& d) {
  if (d.word(1) != "sync") return false;
  d.now.option = d.word(2) == "ballot" ? kBallot : d.word(2) == "any" ? kAny : d.word(2) == "all" ? kAll : kUniform;
  d.now.a[0] = d.value(d.operand(0), d.now.option == kBallot ? 4 : 0);
  std::string said = d.operand(1);
  if (said[0] == '!') d.now.number = 1, said = said.substr(1);
  d.now.a[1] = d.value(said, 0);
  d.now.a[4] = d.value(d.operand(2), 4);
  d.now.flow = Flow::lanes;
  d.now.step = vote;
  return true;
}

bool reductions(Decoder& d) {
  const std::string& how = d.word(2);
  const bool is_signed = d.type() == "s32";
  d.now.a[0] = d.value(d.operand(0), 4);
  d.now.a[1] = d.value(d.operand(1), 4);
  d.now.a[4] = d.value(d.operand(2), 4);
  d.now.flow = Flow::lanes;
  if (how == "add") d.now.step = reduce<uint32_t, 0>;
  if (how == "min") d.now.step = is_signed ? reduce<int32_t, 1> : reduce<uint32_t, 1>;
  if (how == "max") d.now.step = is_signed ? reduce<int32_t, 2> : reduce<uint32_t, 2>;
  if (how == "and") d.now.step = reduce<uint32_t, 3>;
  if (how == "or") d.now.step = reduce<uint32_t, 4>;
  if (how == "xor") d.now.step = reduce<uint32_t, 5>;
  return d.now.step != nullptr;
}

bool barriers(Decoder& d) {
  d.now.kind = Kind::barrier;
  if (d.word(1) == "warp") {
    d.now.a[4] = d.value(d.operand(0), 4);
    d.now.flow = Flow::lanes;
    d.now.step = warp_barrier;
    return true;
  }
  if (d.word(1) != "sync" && !(d.word(1) == "cta" && d.word(2) == "sync")) return false;
  d.now.flow = Flow::barrier;
  d.now.a[0] = d.value(d.operand(0), 4);
  d.now.a[1] = d.value(d.operands() > 1 ? d.operand(1) : "0", 4);
  d.now.step = nothing;
  return true;
}

}  // namespace

bool decode_warp(Decoder& d) {
  const std::string& op = d.word(0);
  d.now.kind = Kind::shuffle;
  if (op == "shfl") return shuffles(d);
  if (op == "vote") return votes(d);
  if (op == "redux") return reductions(d);
  if (op == "bar" || op == "barrier") return barriers(d);
  if (op == "activemask") {
    d.now.a[0] = d.value(d.operand(0), 4);
    d.now.step = active;
    return true;
  }
  if (op == "elect") {
    pair(d, 4);
    d.now.a[4] = d.value(d.operand(1), 4);
    d.now.flow = Flow::lanes;
    d.now.step = elect;
    return !d.now.more.empty();
  }
  d.now.kind = Kind::other;
  if (op == "fence" || op == "membar") {
    d.now.step = d.has("proxy") ? proxy_fence : nothing;
    return true;
  }
  if (op == "griddepcontrol" || op == "nanosleep" || op == "setmaxnreg") {
    d.now.step = nothing;
    return true;
  }
  if (op == "trap") {
    d.now.step = trap;
    return true;
  }
  return false;
}

}  // namespace machine
