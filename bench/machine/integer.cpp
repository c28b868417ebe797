// Arithmetic and logic of whole numbers.
#include <type_traits>

#include "decode.h"

namespace machine {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
struct Wider;
template <>
struct Wider<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wider<int16_t> {
  using type = int32_t;
};
template <>
struct Wider<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wider<int32_t> {
  using type = int64_t;
};
template <>
struct Wider<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wider<int64_t> {
  using type = __int128;
};
template <class T>
using Wide = typename Wider<T>::type;

template <class T>
T low(T a, T b) {
  return T(Wide<Unsigned<T>>(Unsigned<T>(a)) * Unsigned<T>(b));
}
template <class T>
T high(T a, T b) {
  return T((Wide<T>(a) * b) >> (8 * sizeof(T)));
}
template <class T>
T plus(T a, T b) {
  return T(Unsigned<T>(a) + Unsigned<T>(b));
}

// A quotient or remainder by 0 is what the hardware gives, all bits or the dividend.
template <class T>
T quotient(T a, T b) {
  if (b == 0) return T(-1);
  return std::is_signed_v<T> && b == T(-1) ? T(Unsigned<T>(0) - Unsigned<T>(a)) : T(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}

// Sums with a carry, which lanes keep from one instruction to the next: `option` 1 takes it, 2 leaves it.
template <class T, bool kMultiply, bool kHigh>
void carried(Warp& w, const Instruction& i) {
  T* d = w.at<T>(i.a[0]);
  const T *a = w.at<T>(i.a[1]), *b = w.at<T>(i.a[2]), *c = w.at<T>(i.a[3]);
  uint32_t* carry = w.at<uint32_t>(i.a[4]);
  const uint32_t in = i.option & 1 ? *carry : 0;
  uint32_t out = *carry;
  each(w.mask, [&](int lane) {
    T first = a[lane], second = b[lane];
    if constexpr (kMultiply) {
      first = kHigh ? high(first, second) : low(first, second);
      second = c[lane];
    }
    const Wide<T> sum = Wide<T>(first) + second + (in >> lane & 1);
    out = (out & ~(1u << lane)) | uint32_t(sum >> (8 * sizeof(T)) & 1) << lane;
    d[lane] = T(sum);
  });
  if (i.option & 2) *carry = out;
}

template <class T>
bool carry(Decoder& d, const std::string& op) {
  const bool multiply = op[0] == 'm';
  d.now.a[0] = d.value(d.operand(0), sizeof(T));
  for (int k = 1; k < (multiply ? 4 : 3); ++k) d.now.a[k] = d.value(d.operand(k), sizeof(T));
  d.now.a[4] = d.carry();
  d.now.option = uint8_t((op.back() == 'c' ? 1 : 0) | (d.has("cc") ? 2 : 0));
  if (!multiply) {
    d.now.step = carried<T, false, false>;
  } else {
    d.now.step = d.has("hi") ? carried<T, true, true> : carried<T, true, false>;
  }
  return true;
}

template <class T>
bool signed_or_not(Decoder& d, const std::string& op) {
  if (op == "add") return d.map<T, T, T>([](T a, T b) { return plus(a, b); }), true;
  if (op == "sub") return d.map<T, T, T>([](T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }), true;
  if (op == "mul" && d.has("wide")) {
    if constexpr (sizeof(T) < 8) return d.map<Wide<T>, T, T>([](T a, T b) { return Wide<T>(a) * b; }), true;
  }
  if (op == "mul" && d.has("hi")) return d.map<T, T, T>([](T a, T b) { return high(a, b); }), true;
  if (op == "mul") return d.map<T, T, T>([](T a, T b) { return low(a, b); }), true;
  if (op == "mad" && d.has("wide")) {
    if constexpr (sizeof(T) < 8) {
      using W = Wide<T>;
      return d.map<W, T, T, W>([](T a, T b, W c) { return plus<W>(W(a) * b, c); }), true;
    }
  }
  if (op == "mad" && d.has("hi")) return d.map<T, T, T, T>([](T a, T b, T c) { return plus(high(a, b), c); }), true;
  if (op == "mad") return d.map<T, T, T, T>([](T a, T b, T c) { return plus(low(a, b), c); }), true;
  if (op == "div") return d.map<T, T, T>([](T a, T b) { return quotient(a, b); }), true;
  if (op == "rem") return d.map<T, T, T>([](T a, T b) { return remainder(a, b); }), true;
  if (op == "min") return d.map<T, T, T>([](T a, T b) { return std::min(a, b); }), true;
  if (op == "max") return d.map<T, T, T>([](T a, T b) { return std::max(a, b); }), true;
  if (op == "neg") return d.map<T, T>([](T a) { return T(Unsigned<T>(0) - Unsigned<T>(a)); }), true;
  if (op == "abs") return d.map<T, T>([](T a) { return a < 0 ? T(Unsigned<T>(0) - Unsigned<T>(a)) : a; }), true;
  if (op == "shr") {
    return d.map<T, T, uint32_t>([](T a, uint32_t n) {
      constexpr uint32_t most = 8 * sizeof(T) - 1;
      return n > most && !std::is_signed_v<T> ? T(0) : T(a >> std::min(n, most));
    }),
           true;
  }
  if constexpr (sizeof(T) >= 4) {
    if (op == "bfe") {
      return d.map<T, T, uint32_t, uint32_t>([](T a, uint32_t at, uint32_t n) {
        constexpr uint32_t bits = 8 * sizeof(T);
        at &= 255, n &= 255;
        if (n == 0 || (!std::is_signed_v<T> && at >= bits)) return T(0);
        const uint32_t last = std::min(at + n - 1, bits - 1);  // of the field, whose bit is the sign
        const T moved = at < bits ? T(a >> at) : T(0);
        const bool negative = std::is_signed_v<T> && (Unsigned<T>(a) >> last & 1);
        if (n >= bits) return at < bits ? moved : T(negative ? -1 : 0);
        const Unsigned<T> field = (Unsigned<T>(1) << n) - 1;
        const Unsigned<T> within = last - std::min(at, last) + 1;
        Unsigned<T> out = Unsigned<T>(moved) & field;
        if (within < n && within < bits) out &= (Unsigned<T>(1) << within) - 1;
        return T(negative ? out | ~((Unsigned<T>(1) << std::min<Unsigned<T>>(within, bits - 1)) - 1) : out);
      }),
             true;
    }
    if (op == "bfind") {
      if (d.has("shiftamt")) {
        d.map<uint32_t, T>([](T a) {
          const Unsigned<T> bits = std::is_signed_v<T> && a < 0 ? ~Unsigned<T>(a) : Unsigned<T>(a);
          return bits == 0 ? kEvery : uint32_t(8 * sizeof(T) - 1 - (63 - __builtin_clzll(uint64_t(bits))));
        });
      } else {
        d.map<uint32_t, T>([](T a) {
          const Unsigned<T> bits = std::is_signed_v<T> && a < 0 ? ~Unsigned<T>(a) : Unsigned<T>(a);
          return bits == 0 ? kEvery : uint32_t(63 - __builtin_clzll(uint64_t(bits)));
        });
      }
      return true;
    }
  }
  return false;
}

template <class T>
bool bits(Decoder& d, const std::string& op) {
  if (op == "and") return d.map<T, T, T>([](T a, T b) { return T(a & b); }), true;
  if (op == "or") return d.map<T, T, T>([](T a, T b) { return T(a | b); }), true;
  if (op == "xor") return d.map<T, T, T>([](T a, T b) { return T(a ^ b); }), true;
  if (op == "not") return d.map<T, T>([](T a) { return T(~a); }), true;
  if (op == "cnot") return d.map<T, T>([](T a) { return T(a == 0); }), true;
  if (op == "shl") {
    return d.map<T, T, uint32_t>([](T a, uint32_t n) { return n < 8 * sizeof(T) ? T(a << n) : T(0); }), true;
  }
  if (op == "shr") {
    return d.map<T, T, uint32_t>([](T a, uint32_t n) { return n < 8 * sizeof(T) ? T(a >> n) : T(0); }), true;
  }
  if constexpr (sizeof(T) >= 4) {
    if (op == "popc") return d.map<uint32_t, T>([](T a) { return uint32_t(__builtin_popcountll(a)); }), true;
    if (op == "clz") {
      return d.map<uint32_t, T>([](T a) {
        return a == 0 ? uint32_t(8 * sizeof(T)) : uint32_t(__builtin_clzll(a)) - (64 - 8 * uint32_t(sizeof(T)));
      }),
             true;
    }
    if (op == "brev") {
      return d.map<T, T>([](T a) {
        T out = 0;
        for (size_t k = 0; k < 8 * sizeof(T); ++k) out |= (a >> k & 1) << (8 * sizeof(T) - 1 - k);
        return out;
      }),
             true;
    }
    if (op == "bfi") {
      return d.map<T, T, T, uint32_t, uint32_t>([](T a, T b, uint32_t at, uint32_t n) {
        constexpr uint32_t all = 8 * sizeof(T);
        at &= 255, n &= 255;
        if (at >= all || n == 0) return b;
        const T field = n >= all ? T(~T(0)) : T((T(1) << n) - 1);
        return T((b & ~(field << at)) | (a & field) << at);
      }),
             true;
    }
  }
  return false;
}

template <int kLogic>
void of_predicates(Warp& w, const Instruction& i) {
  uint32_t* d = w.at<uint32_t>(i.a[0]);
  const uint32_t a = *w.at<uint32_t>(i.a[1]), b = *w.at<uint32_t>(i.a[2]);
  const uint32_t out = kLogic == 0 ? a & b : kLogic == 1 ? a | b : kLogic == 2 ? a ^ b : ~a;
  *d = (*d & ~w.mask) | (out & w.mask);
}

bool predicates(Decoder& d, const std::string& op) {
  const bool one = op == "not";
  if (op != "and" && op != "or" && op != "xor" && !one) return false;
  for (int k = 0; k < (one ? 2 : 3); ++k) d.now.a[k] = d.value(d.operand(k), 0);
  d.now.step = op == "and"   ? of_predicates<0>
               : op == "or"  ? of_predicates<1>
               : op == "xor" ? of_predicates<2>
                             : of_predicates<3>;
  d.now.kind = Kind::select;
  return true;
}

void three_way(Warp& w, const Instruction& i) {
  const uint32_t *a = w.at<uint32_t>(i.a[1]), *b = w.at<uint32_t>(i.a[2]), *c = w.at<uint32_t>(i.a[3]);
  uint32_t* d = w.at<uint32_t>(i.a[0]);
  each(w.mask, [&](int lane) {
    uint32_t out = 0;
    for (int k = 0; k < 8; ++k) {
      if (i.number >> k & 1) {
        out |= (k & 4 ? a[lane] : ~a[lane]) & (k & 2 ? b[lane] : ~b[lane]) & (k & 1 ? c[lane] : ~c[lane]);
      }
    }
    d[lane] = out;
  });
}

bool other(Decoder& d, const std::string& op) {
  using U = uint32_t;
  if (op == "shf") {
    const bool left = d.word(1) == "l", wrap = d.has("wrap");
    if (left && wrap) {
      d.map<U, U, U, U>([](U a, U b, U n) { return U((uint64_t(b) << 32 | a) >> (32 - (n & 31))); });
    } else if (left) {
      d.map<U, U, U, U>([](U a, U b, U n) { return U((uint64_t(b) << 32 | a) >> (32 - std::min(n, 32u))); });
    } else if (wrap) {
      d.map<U, U, U, U>([](U a, U b, U n) { return U((uint64_t(b) << 32 | a) >> (n & 31)); });
    } else {
      d.map<U, U, U, U>([](U a, U b, U n) { return U((uint64_t(b) << 32 | a) >> std::min(n, 32u)); });
    }
    return true;
  }
  if (op == "prmt" && d.statement->op.size() == 2) {
    d.map<U, U, U, U>([](U a, U b, U which) {
      const uint64_t both = uint64_t(b) << 32 | a;
      U out = 0;
      for (int k = 0; k < 4; ++k) {
        const U pick = which >> 4 * k & 15;
        const U byte = U(both >> 8 * (pick & 7)) & 255;
        out |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * k;
      }
      return out;
    });
    return true;
  }
  if (op == "lop3") {
    for (int k = 0; k < 4; ++k) d.now.a[k] = d.value(d.operand(k), 4);
    d.now.number = d.number(d.operand(4));
    d.now.step = three_way;
    return true;
  }
  return false;
}

}  // namespace

bool decode_integer(Decoder& d) {
  const std::string& op = d.word(0);
  const std::string& type = d.type();
  d.now.kind = Kind::integer;
  if (type == "pred") return predicates(d, op);
  if ((d.has("cc") || op == "addc" || op == "madc") && op[0] != 's') {
    return type == "u32" || type == "s32" ? carry<uint32_t>(d, op)
                                          : (type == "u64" || type == "s64") && carry<uint64_t>(d, op);
  }
  if (op == "shf" || op == "prmt" || op == "lop3") return other(d, op);
  if (op == "add" && !d.has("sat") && (type == "s16x2" || type == "u16x2")) {
    return d.map<uint32_t, uint32_t, uint32_t>(
               [](uint32_t a, uint32_t b) { return ((a + b) & 0xffff) | ((a >> 16) + (b >> 16)) << 16; }),
           true;
  }
  if (type == "s16") return signed_or_not<int16_t>(d, op);
  if (type == "u16") return signed_or_not<uint16_t>(d, op);
  if (type == "s32") return signed_or_not<int32_t>(d, op);
  if (type == "u32") return signed_or_not<uint32_t>(d, op);
  if (type == "s64") return signed_or_not<int64_t>(d, op);
  if (type == "u64") return signed_or_not<uint64_t>(d, op);
  if (type == "b16") return bits<uint16_t>(d, op);
  if (type == "b32") return bits<uint32_t>(d, op);
  if (type == "b64") return bits<uint64_t>(d, op);
  return false;
}

}  // namespace machine
