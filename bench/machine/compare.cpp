// Comparisons and choices.
#include "decode.h"
#include "numbers.h"

namespace machine {
namespace {

enum Comparison : uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kNumber, kNan };

struct Relation {
  Comparison comparison;
  bool unordered;  // true where an operand is NaN
};

template <class T>
bool holds(T a, T b, uint8_t comparison) {
  switch (comparison) {
    case kEqual:
      return a == b;
    case kNotEqual:
      return a != b;
    case kLess:
      return a < b;
    case kLessEqual:
      return a <= b;
    case kGreater:
      return a > b;
    default:
      return a >= b;
  }
}
template <class T>
bool floats_hold(T a, T b, uint8_t comparison, bool unordered) {
  const bool nan = a != a || b != b;
  if (comparison == kNumber) return !nan;
  if (comparison == kNan) return nan;
  return nan ? unordered : holds(a, b, comparison);
}

// Puts the result, joined with a third operand, into one or two predicates.
void put(Warp& w, const Instruction& i, uint32_t result, int which = 0) {
  uint32_t first = result, second = ~result;
  if (i.second) {
    const uint32_t third = *w.at<uint32_t>(i.a[4]) ^ (i.second & 8 ? kEvery : 0);
    const auto joined = [&](uint32_t x) {
      return (i.second & 7) == 1 ? x & third : (i.second & 7) == 2 ? x | third : x ^ third;
    };
    first = joined(first), second = joined(second);
  }
  uint32_t* to = w.at<uint32_t>(i.more[which]);
  *to = (*to & ~w.mask) | (first & w.mask);
  if (which == 0 && i.more.size() > 1 && !i.bytes) {
    to = w.at<uint32_t>(i.more[1]);
    *to = (*to & ~w.mask) | (second & w.mask);
  }
}

template <class T>
void set_whole(Warp& w, const Instruction& i) {
  const T *a = w.at<T>(i.a[0]), *b = w.at<T>(i.a[1]);
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= uint32_t(holds(a[lane], b[lane], i.option)) << lane;
  put(w, i, result);
}
template <class T>
void set_float(Warp& w, const Instruction& i) {
  const T *a = w.at<T>(i.a[0]), *b = w.at<T>(i.a[1]);
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    T x = a[lane], y = b[lane];
    if constexpr (sizeof(T) == 4) {
      if (i.number & 2) x = flushed(x), y = flushed(y);
    }
    result |= uint32_t(floats_hold(x, y, i.option, i.number & 1)) << lane;
  }
  put(w, i, result);
}
template <class H>
void set_half(Warp& w, const Instruction& i) {
  const uint16_t *a = w.at<uint16_t>(i.a[0]), *b = w.at<uint16_t>(i.a[1]);
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    result |= uint32_t(floats_hold(H{a[lane]}.value(), H{b[lane]}.value(), i.option, i.number & 1)) << lane;
  }
  put(w, i, result);
}
// Of two numbers in a register: a predicate for each.
template <class H>
void set_halves(Warp& w, const Instruction& i) {
  const uint32_t *a = w.at<uint32_t>(i.a[0]), *b = w.at<uint32_t>(i.a[1]);
  for (size_t k = 0; k < i.more.size(); ++k) {
    uint32_t result = 0;
    for (int lane = 0; lane < 32; ++lane) {
      const float x = H{uint16_t(a[lane] >> 16 * k)}.value(), y = H{uint16_t(b[lane] >> 16 * k)}.value();
      result |= uint32_t(floats_hold(x, y, i.option, i.number & 1)) << lane;
    }
    put(w, i, result, int(k));
  }
}

Relation relation(const std::string& word, bool floating) {
  static const std::pair<const char*, Comparison> names[] = {
      {"eq", kEqual},   {"ne", kNotEqual}, {"lt", kLess}, {"le", kLessEqual}, {"gt", kGreater}, {"ge", kGreaterEqual},
      {"num", kNumber}, {"nan", kNan},     {"lo", kLess}, {"ls", kLessEqual}, {"hi", kGreater}, {"hs", kGreaterEqual}};
  for (const auto& [name, comparison] : names) {
    if (word == name) return {comparison, false};
    if (floating && word == std::string(name) + "u") return {comparison, true};
  }
  throw Fault("machine: no comparison " + word);
}

bool set_predicate(Decoder& d) {
  const std::string& type = d.type();
  const bool floating = type[0] == 'f' || (type[0] == 'b' && type[1] == 'f');
  const bool pairs = type == "f16x2" || type == "bf16x2";
  const Relation r = relation(d.word(1), floating);
  d.now.option = r.comparison;
  d.now.number = int64_t(r.unordered) | (d.has("ftz") ? 2 : 0);
  d.now.bytes = pairs;
  for (const std::string& name : split(d.operand(0), '|')) d.now.more.push_back(d.value(trim(name), 0));
  const int bytes = bytes_of(type);
  const bool wide_float = type == "f32" || type == "f64";
  d.now.a[0] = d.value(d.operand(1), bytes, wide_float);
  d.now.a[1] = d.value(d.operand(2), bytes, wide_float);
  d.now.second = d.has("and") ? 1 : d.has("or") ? 2 : d.has("xor") ? 3 : 0;
  if (d.now.second) {
    std::string third = d.operand(3);
    if (third[0] == '!') d.now.second |= 8, third = third.substr(1);
    d.now.a[4] = d.value(third, 0);
  }
  if (type == "f32") d.now.step = set_float<float>;
  if (type == "f64") d.now.step = set_float<double>;
  if (type == "f16") d.now.step = set_half<Half>;
  if (type == "bf16") d.now.step = set_half<Bfloat>;
  if (type == "f16x2") d.now.step = set_halves<Half>;
  if (type == "bf16x2") d.now.step = set_halves<Bfloat>;
  if (type == "u16" || type == "b16") d.now.step = set_whole<uint16_t>;
  if (type == "s16") d.now.step = set_whole<int16_t>;
  if (type == "u32" || type == "b32") d.now.step = set_whole<uint32_t>;
  if (type == "s32") d.now.step = set_whole<int32_t>;
  if (type == "u64" || type == "b64") d.now.step = set_whole<uint64_t>;
  if (type == "s64") d.now.step = set_whole<int64_t>;
  return d.now.step != nullptr;
}

template <class T>
void select(Warp& w, const Instruction& i) {
  const uint32_t which = *w.at<uint32_t>(i.a[3]);
  const T *a = w.at<T>(i.a[1]), *b = w.at<T>(i.a[2]);
  T* to = w.at<T>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = which >> lane & 1 ? a[lane] : b[lane]; });
}

bool choose(Decoder& d) {
  const int bytes = bytes_of(d.type());
  const bool floating = d.type() == "f32" || d.type() == "f64";
  for (int k = 0; k < 3; ++k) d.now.a[k] = d.value(d.operand(k), bytes, k && floating);
  d.now.a[3] = d.value(d.operand(3), 0);
  d.now.step = bytes == 2 ? select<uint16_t> : bytes == 4 ? select<uint32_t> : bytes == 8 ? select<uint64_t> : nullptr;
  return d.now.step != nullptr;
}

}  // namespace

bool decode_compare(Decoder& d) {
  d.now.kind = Kind::select;
  if (d.word(0) == "setp") return set_predicate(d);
  if (d.word(0) == "selp") return choose(d);
  return false;
}

}  // namespace machine
