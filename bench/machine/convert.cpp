// Moves, packing, and conversions between types.
#include <limits>
#include <type_traits>

#include "decode.h"
#include "numbers.h"

namespace machine {
namespace {

// ---- moves

template <class Whole, class Part>
void unpack(Warp& w, const Instruction& i) {
  const Whole* from = w.at<Whole>(i.a[0]);
  for (size_t k = 0; k < i.more.size(); ++k) {
    Part* to = w.at<Part>(i.more[k]);
    each(w.mask, [&](int lane) { to[lane] = Part(from[lane] >> (8 * sizeof(Part) * k)); });
  }
}
template <class Whole, class Part>
void pack(Warp& w, const Instruction& i) {
  std::array<Whole, 32> whole{};
  for (size_t k = 0; k < i.more.size(); ++k) {
    const Part* from = w.at<Part>(i.more[k]);
    each(w.mask, [&](int lane) { whole[lane] |= Whole(from[lane]) << (8 * sizeof(Part) * k); });
  }
  Whole* to = w.at<Whole>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = whole[lane]; });
}

void move_predicate(Warp& w, const Instruction& i) {
  uint32_t* to = w.at<uint32_t>(i.a[0]);
  *to = (*to & ~w.mask) | (*w.at<uint32_t>(i.a[1]) & w.mask);
}

bool move(Decoder& d) {
  d.now.kind = Kind::move;
  const int bytes = bytes_of(d.type());
  const bool to_parts = d.operand(0)[0] == '{', of_parts = d.operand(1)[0] == '{';
  if (bytes == 0) {
    d.now.a[0] = d.value(d.operand(0), 0);
    d.now.a[1] = d.value(d.operand(1), 0);
    d.now.step = move_predicate;
    return true;
  }
  if (!to_parts && !of_parts) {
    if (bytes == 2) return d.map<uint16_t, uint16_t>([](uint16_t x) { return x; }), true;
    if (bytes == 4) return d.map<uint32_t, uint32_t>([](uint32_t x) { return x; }), true;
    if (bytes == 8) return d.map<uint64_t, uint64_t>([](uint64_t x) { return x; }), true;
    return false;
  }
  const std::string& many = d.operand(to_parts ? 0 : 1);
  const int parts = int(Decoder::parts(many).size());
  d.now.more = d.values(many, bytes / parts);
  d.now.a[0] = d.value(d.operand(to_parts ? 1 : 0), bytes);
  if (bytes == 4 && parts == 2) d.now.step = to_parts ? unpack<uint32_t, uint16_t> : pack<uint32_t, uint16_t>;
  if (bytes == 8 && parts == 2) d.now.step = to_parts ? unpack<uint64_t, uint32_t> : pack<uint64_t, uint32_t>;
  if (bytes == 8 && parts == 4) d.now.step = to_parts ? unpack<uint64_t, uint16_t> : pack<uint64_t, uint16_t>;
  return d.now.step != nullptr;
}

// ---- conversions

enum class Round { nearest, zero, down, up };

template <class F>
F rounded(F x, Round way) {
  switch (way) {
    case Round::nearest:
      return std::nearbyint(x);
    case Round::zero:
      return std::trunc(x);
    case Round::down:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}
template <class I, class F>
I to_whole(F x, Round way) {
  if (x != x) return sizeof(I) == 8 ? I(1ull << 63) : I(0);
  x = rounded(x, way);
  constexpr F low = F(std::numeric_limits<I>::min()), high = F(std::numeric_limits<I>::max());
  if (x <= low) return std::numeric_limits<I>::min();
  return x >= high ? std::numeric_limits<I>::max() : I(x);
}

// Registers of whole numbers may be wider than the type.
template <class T>
T read(Warp& w, uint32_t at, int bytes, int lane) {
  T x;
  std::memcpy(&x, w.file.data() + at + size_t(bytes) * lane, sizeof(T));
  return x;
}
template <class T>
void write(Warp& w, uint32_t at, int bytes, int lane, T x) {
  if constexpr (std::is_floating_point_v<T>) {
    std::memcpy(w.file.data() + at + size_t(bytes) * lane, &x, sizeof(T));
  } else {
    const int64_t wide = int64_t(x);
    std::memcpy(w.file.data() + at + size_t(bytes) * lane, &wide, bytes);
  }
}

template <class D, class S, bool kSaturate>
void whole(Warp& w, const Instruction& i) {
  const int to = int(i.number), from = int(i.second);
  each(w.mask, [&](int lane) {
    const S x = read<S>(w, i.a[1], from, lane);
    D out = D(x);
    if constexpr (kSaturate) {
      const __int128 wide = x;
      if (wide > std::numeric_limits<D>::max()) out = std::numeric_limits<D>::max();
      if (wide < std::numeric_limits<D>::min()) out = std::numeric_limits<D>::min();
    }
    write<D>(w, i.a[0], to, lane, out);
  });
}
template <class D, class S>
void float_to_whole(Warp& w, const Instruction& i) {
  each(w.mask, [&](int lane) {
    S x = w.at<S>(i.a[1])[lane];
    if (i.bytes) x = S(flushed(float(x)));
    write<D>(w, i.a[0], int(i.number), lane, to_whole<D, S>(x, Round(i.option)));
  });
}
template <class D, class S>
void whole_to_float(Warp& w, const Instruction& i) {
  each(w.mask, [&](int lane) { w.at<D>(i.a[0])[lane] = D(read<S>(w, i.a[1], int(i.second), lane)); });
}

template <class T>
struct Tag {
  using type = T;
};
template <class F>
bool with_whole(const std::string& type, F f) {
  if (type == "u8" || type == "b8") return f(Tag<uint8_t>());
  if (type == "s8") return f(Tag<int8_t>());
  if (type == "u16" || type == "b16") return f(Tag<uint16_t>());
  if (type == "s16") return f(Tag<int16_t>());
  if (type == "u32" || type == "b32") return f(Tag<uint32_t>());
  if (type == "s32") return f(Tag<int32_t>());
  if (type == "u64" || type == "b64") return f(Tag<uint64_t>());
  if (type == "s64") return f(Tag<int64_t>());
  return false;
}

bool is_whole(const std::string& type) { return type[0] == 'u' || type[0] == 's'; }

bool of_floats(Decoder& d, const std::string& to, const std::string& from) {
  using H = uint16_t;
  if (to == "f32" && from == "f32") {
    const bool whole = d.has("rni") || d.has("rzi") || d.has("rmi") || d.has("rpi");
    if (d.has("sat") && !whole) {
      return d.map<float, float>([](float x) { return x > 0 ? std::fmin(x, 1.0f) : 0.0f; }), true;
    }
    if (d.has("sat")) return false;
    if (d.has("rni")) return d.map<float, float>([](float x) { return std::nearbyint(x); }), true;
    if (d.has("rzi")) return d.map<float, float>([](float x) { return std::trunc(x); }), true;
    if (d.has("rmi")) return d.map<float, float>([](float x) { return std::floor(x); }), true;
    if (d.has("rpi")) return d.map<float, float>([](float x) { return std::ceil(x); }), true;
    return d.map<float, float>([](float x) { return flushed(x); }), d.has("ftz");
  }
  if (to == "f64" && from == "f64") {
    if (d.has("sat")) return d.map<double, double>([](double x) { return x > 0 ? std::fmin(x, 1.0) : 0.0; }), true;
    if (d.has("rni")) return d.map<double, double>([](double x) { return std::nearbyint(x); }), true;
    if (d.has("rzi")) return d.map<double, double>([](double x) { return std::trunc(x); }), true;
    if (d.has("rmi")) return d.map<double, double>([](double x) { return std::floor(x); }), true;
    if (d.has("rpi")) return d.map<double, double>([](double x) { return std::ceil(x); }), true;
    return false;
  }
  if (d.has("sat") || d.has("relu")) return false;
  if (to == "f64" && from == "f32") return d.map<double, float>([](float x) { return double(x); }), true;
  if (to == "f32" && from == "f64") {
    if (d.has("rz")) return d.map<float, double>([](double x) { return toward_zero(x); }), true;
    if (d.has("rm")) return d.map<float, double>([](double x) { return downward(x); }), true;
    return d.map<float, double>([](double x) { return float(x); }), d.has("rn");
  }
  if (to == "f32" && from == "f16") return d.map<float, H>([](H x) { return Half{x}.value(); }), true;
  if (to == "f32" && from == "bf16") return d.map<float, H>([](H x) { return Bfloat{x}.value(); }), true;
  if (to == "f64" && from == "f16") return d.map<double, H>([](H x) { return double(Half{x}.value()); }), true;
  if (to == "f64" && from == "bf16") return d.map<double, H>([](H x) { return double(Bfloat{x}.value()); }), true;
  if (!d.has("rn") && !d.has("rna")) return false;
  if (to == "f16" && from == "f32") return d.map<H, float>([](float x) { return Half::of(x).bits; }), true;
  if (to == "bf16" && from == "f32") return d.map<H, float>([](float x) { return Bfloat::of(x).bits; }), true;
  if (to == "f16" && from == "f64") return d.map<H, double>([](double x) { return Half::of(to_odd(x)).bits; }), true;
  if (to == "bf16" && from == "f64") {
    return d.map<H, double>([](double x) { return Bfloat::of(to_odd(x)).bits; }), true;
  }
  if (to == "bf16" && from == "f16") return d.map<H, H>([](H x) { return Bfloat::of(Half{x}.value()).bits; }), true;
  if (to == "tf32" && from == "f32") {  // ties away from zero
    return d.map<uint32_t, float>([](float x) {
      const uint32_t bits = to_bits(x);
      return std::isfinite(x) ? (bits + 0x1000) & 0xffffe000u : bits & 0xffffe000u;
    }),
           true;
  }
  if (to == "f16x2" && from == "f32") {
    return d.map<uint32_t, float, float>(
               [](float high, float low) { return uint32_t(Half::of(high).bits) << 16 | Half::of(low).bits; }),
           true;
  }
  if (to == "bf16x2" && from == "f32") {
    return d.map<uint32_t, float, float>(
               [](float high, float low) { return uint32_t(Bfloat::of(high).bits) << 16 | Bfloat::of(low).bits; }),
           true;
  }
  return false;
}

bool convert(Decoder& d) {
  d.now.kind = Kind::convert;
  const Words& op = d.statement->op;
  if (op.size() < 3) return false;
  const std::string to = op[op.size() - 2], from = op.back();
  if (!is_whole(to) && !is_whole(from)) return of_floats(d, to, from);
  int bytes = 0;
  const auto place = [&](size_t k, int wanted) {
    const uint32_t at = d.any(d.operand(k), bytes, wanted);
    if (bytes < wanted) d.unknown();
    return at;
  };
  d.now.a[0] = place(0, bytes_of(to));
  d.now.number = bytes;
  d.now.a[1] = place(1, bytes_of(from));
  d.now.second = bytes;
  const bool saturate = d.has("sat");
  if (is_whole(to) && is_whole(from)) {
    return with_whole(to, [&](auto t) {
      return with_whole(from, [&](auto f) {
        using T = typename decltype(t)::type;
        using S = typename decltype(f)::type;
        d.now.step = saturate ? whole<T, S, true> : whole<T, S, false>;
        return true;
      });
    });
  }
  d.now.option = uint8_t(d.has("rni")   ? Round::nearest
                         : d.has("rmi") ? Round::down
                         : d.has("rpi") ? Round::up
                                        : Round::zero);
  d.now.bytes = d.has("ftz");
  if (is_whole(to)) {
    return with_whole(to, [&](auto t) {
      using T = typename decltype(t)::type;
      if (from == "f32") d.now.step = float_to_whole<T, float>;
      if (from == "f64") d.now.step = float_to_whole<T, double>;
      return d.now.step != nullptr;
    });
  }
  if (!d.has("rn") || saturate) return false;
  return with_whole(from, [&](auto f) {
    using S = typename decltype(f)::type;
    if (to == "f32") d.now.step = whole_to_float<float, S>;
    if (to == "f64") d.now.step = whole_to_float<double, S>;
    return d.now.step != nullptr;
  });
}

// Between an address within a kind of memory and a generic one: number is what to add.
void generic_address(Warp& w, const Instruction& i) {
  uint64_t* to = w.at<uint64_t>(i.a[0]);
  each(w.mask, [&](int lane) { to[lane] = w.at<uint64_t>(i.a[1])[lane] + uint64_t(i.number); });
}

bool window(Decoder& d) {
  d.now.kind = Kind::integer;
  uint64_t at = 0;
  if (d.has("shared") || d.has("shared::cta")) at = kSharedWindow;
  if (d.has("local")) at = kLocalWindow;
  if (d.has("param") || d.has("param::entry")) at = kParameterWindow;
  if (at == 0 && !d.has("global") && !d.has("const")) return false;
  d.now.number = d.has("to") ? -int64_t(at) : int64_t(at);
  d.now.a[0] = d.value(d.operand(0), 8);
  d.now.a[1] = d.value(d.operand(1), 8);
  d.now.step = generic_address;
  return true;
}

}  // namespace

bool decode_convert(Decoder& d) {
  const std::string& op = d.word(0);
  if (op == "mov") return move(d);
  if (op == "cvt") return convert(d);
  if (op == "cvta") return window(d);
  return false;
}

}  // namespace machine
