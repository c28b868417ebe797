// Arithmetic of floating-point numbers, and the approximate functions with an error as large as their documents allow.
#include "decode.h"
#include "numbers.h"

namespace machine {
namespace {

// The same number in -1..1 for the same argument: the part of the documented error that a result has.
double part(uint64_t bits) {
  bits *= 0x9e3779b97f4a7c15ull;
  bits ^= bits >> 29;
  bits *= 0xbf58476d1ce4e5b9ull;
  return double(int64_t(bits)) * 0x1p-63;
}
double relative(float x, double exact, double most) {
  return std::isfinite(exact) ? exact * (1 + most * part(to_bits(x))) : exact;
}
double absolute(float x, double exact, double most) {
  return std::isfinite(exact) ? exact + most * part(to_bits(x)) : exact;
}

// Each as the parallel thread execution documents state: the exact value, less or more at most the error.
struct Exponential {
  static float of(float x) { return x == 0 ? 1 : float(relative(x, std::exp2(double(x)), 0x1p-22)); }
};
struct Logarithm {
  static float of(float x) {
    const double exact = std::log2(double(x));
    return x == 1 ? 0 : float(x > 0.5f && x < 2 ? absolute(x, exact, 0x1p-22) : relative(x, exact, 0x1p-22));
  }
};
struct Reciprocal {
  static float of(float x) {
    int exponent;
    const bool exact = std::frexp(x, &exponent) == 0.5f || std::frexp(x, &exponent) == -0.5f;
    return exact ? 1 / x : float(relative(x, 1 / double(x), 0x1p-23));
  }
};
struct Root {
  static float of(float x) { return x == 1 ? 1 : float(relative(x, std::sqrt(double(x)), 0x1p-23)); }
};
struct ReciprocalRoot {
  static float of(float x) { return x == 1 ? 1 : float(relative(x, 1 / std::sqrt(double(x)), 0x1p-22)); }
};
struct Sine {
  static float of(float x) {
    if (!std::isfinite(x)) return NAN;
    const double turns = std::fmax(1, std::fabs(double(x)) / 3.14159265);
    return x == 0 ? x : float(absolute(x, std::sin(double(x)), turns * 0x1.6a09e6p-21));
  }
};
struct Cosine {
  static float of(float x) {
    if (!std::isfinite(x)) return NAN;
    const double turns = std::fmax(1, std::fabs(double(x)) / 3.14159265);
    return x == 0 ? 1 : float(absolute(x, std::cos(double(x)), turns * 0x1.6a09e6p-21));
  }
};
struct Tangent {
  static float of(float x) { return float(relative(x, std::tanh(double(x)), 0x1p-11)); }
};

template <class F>
void approximate(Decoder& d) {
  if (d.has("ftz")) {
    d.map<float, float>([](float x) { return flushed(F::of(flushed(x))); });
  } else {
    d.map<float, float>([](float x) { return F::of(x); });
  }
  d.now.kind = Kind::special;
}

// 20 bits of the mantissa, the rest zero.
double reciprocal64(double x) {
  const double exact = 1 / x;
  uint64_t bits;
  std::memcpy(&bits, &exact, 8);
  bits &= ~0xffffffffull;
  double out;
  std::memcpy(&out, &bits, 8);
  return out;
}

bool special(Decoder& d, const std::string& op) {
  const bool loose = d.has("approx") || op == "tanh";
  if (d.type() == "f64") {
    d.now.kind = Kind::float64;
    if (op == "rcp" && loose) return d.map<double, double>([](double x) { return reciprocal64(x); }), true;
    if (op == "rsqrt" && loose) {
      return d.map<double, double>([](double x) { return reciprocal64(std::sqrt(x)); }), true;
    }
    if (loose || !d.has("rn")) return false;
    if (op == "rcp") return d.map<double, double>([](double x) { return 1 / x; }), true;
    if (op == "sqrt") return d.map<double, double>([](double x) { return std::sqrt(x); }), true;
    return false;
  }
  if (d.type() != "f32") return false;
  if (!loose && d.has("rn")) {
    d.now.kind = Kind::float32;
    if (op == "rcp") return d.map<float, float>([](float x) { return 1 / x; }), true;
    if (op == "sqrt") return d.map<float, float>([](float x) { return std::sqrt(x); }), true;
    return false;
  }
  if (!loose) return false;
  if (op == "ex2") return approximate<Exponential>(d), true;
  if (op == "lg2") return approximate<Logarithm>(d), true;
  if (op == "rcp") return approximate<Reciprocal>(d), true;
  if (op == "sqrt") return approximate<Root>(d), true;
  if (op == "rsqrt") return approximate<ReciprocalRoot>(d), true;
  if (op == "sin") return approximate<Sine>(d), true;
  if (op == "cos") return approximate<Cosine>(d), true;
  if (op == "tanh") return approximate<Tangent>(d), true;
  return false;
}

template <class T>
T least(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T most(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
float keep_nan(float a, float b, float c) { return a != a || b != b ? NAN : c; }

template <bool kFlush>
bool single(Decoder& d, const std::string& op) {
  using F = float;
  struct In {
    static F of(F x) { return kFlush ? flushed(x) : x; }
  };
  d.now.kind = Kind::float32;
  const bool sat = d.has("sat"), down = d.has("rm"), zero = d.has("rz");
  if (d.has("rp")) return false;
  if (op == "fma" && down && !sat) {
    return d.map<F, F, F, F>(
               [](F a, F b, F c) { return In::of(downward(double(In::of(a)) * In::of(b) + double(In::of(c)))); }),
           true;
  }
  if (op == "fma" && sat && !down && !zero) {
    return d.map<F, F, F, F>([](F a, F b, F c) {
      const F x = std::fma(In::of(a), In::of(b), In::of(c));
      return x > 0 ? std::fmin(x, 1.0f) : 0.0f;
    }),
           true;
  }
  if (zero && !sat && (op == "mul" || op == "add")) {
    if (op == "mul")
      return d.map<F, F, F>([](F a, F b) { return In::of(toward_zero(double(In::of(a)) * In::of(b))); }), true;
    return d.map<F, F, F>([](F a, F b) { return In::of(toward_zero(double(In::of(a)) + In::of(b))); }), true;
  }
  if (sat && !down && !zero) {
    if (op == "add") {
      return d.map<F, F, F>([](F a, F b) { return std::fmin(std::fmax(In::of(a) + In::of(b), 0.0f), 1.0f); }), true;
    }
    if (op == "mul") {
      return d.map<F, F, F>([](F a, F b) { return std::fmin(std::fmax(In::of(a) * In::of(b), 0.0f), 1.0f); }), true;
    }
    return false;
  }
  if (sat || down || zero) return false;
  if (op == "add") return d.map<F, F, F>([](F a, F b) { return In::of(In::of(a) + In::of(b)); }), true;
  if (op == "sub") return d.map<F, F, F>([](F a, F b) { return In::of(In::of(a) - In::of(b)); }), true;
  if (op == "mul") return d.map<F, F, F>([](F a, F b) { return In::of(In::of(a) * In::of(b)); }), true;
  if (op == "fma" || op == "mad") {
    return d.map<F, F, F, F>([](F a, F b, F c) { return In::of(std::fma(In::of(a), In::of(b), In::of(c))); }), true;
  }
  if (op == "div" && d.has("rn")) return d.map<F, F, F>([](F a, F b) { return In::of(In::of(a) / In::of(b)); }), true;
  if (op == "div") {  // full or approx, 2 units in the last place
    d.now.kind = Kind::special;
    return d.map<F, F, F>([](F a, F b) {
      const double exact = double(In::of(a)) / In::of(b);
      return In::of(float(a == b || a == 0 ? exact : relative(b, exact, 0x1p-22)));
    }),
           true;
  }
  if (op == "min" && d.has("NaN")) return d.map<F, F, F>([](F a, F b) { return keep_nan(a, b, least(a, b)); }), true;
  if (op == "max" && d.has("NaN")) return d.map<F, F, F>([](F a, F b) { return keep_nan(a, b, most(a, b)); }), true;
  if (op == "min") return d.map<F, F, F>([](F a, F b) { return In::of(least(a, b)); }), true;
  if (op == "max") return d.map<F, F, F>([](F a, F b) { return In::of(most(a, b)); }), true;
  if (op == "neg") return d.map<F, F>([](F a) { return In::of(-a); }), true;
  if (op == "abs") return d.map<F, F>([](F a) { return In::of(std::fabs(a)); }), true;
  if (op == "copysign") return d.map<F, F, F>([](F a, F b) { return std::copysign(b, a); }), true;
  return false;
}

bool wide(Decoder& d, const std::string& op) {
  using F = double;
  d.now.kind = Kind::float64;
  if (d.has("rm") || d.has("rp") || d.has("rz")) return false;
  if (op == "add") return d.map<F, F, F>([](F a, F b) { return a + b; }), true;
  if (op == "sub") return d.map<F, F, F>([](F a, F b) { return a - b; }), true;
  if (op == "mul") return d.map<F, F, F>([](F a, F b) { return a * b; }), true;
  if (op == "fma" || op == "mad") return d.map<F, F, F, F>([](F a, F b, F c) { return std::fma(a, b, c); }), true;
  if (op == "div") return d.map<F, F, F>([](F a, F b) { return a / b; }), true;
  if (op == "min") return d.map<F, F, F>([](F a, F b) { return least(a, b); }), true;
  if (op == "max") return d.map<F, F, F>([](F a, F b) { return most(a, b); }), true;
  if (op == "neg") return d.map<F, F>([](F a) { return -a; }), true;
  if (op == "abs") return d.map<F, F>([](F a) { return std::fabs(a); }), true;
  if (op == "copysign") return d.map<F, F, F>([](F a, F b) { return std::copysign(b, a); }), true;
  return false;
}

// A number of 16 bits, and two of them in a register.
template <class H>
struct One {
  using Register = uint16_t;
  template <class F>
  static Register of(F f, uint16_t a, uint16_t b = 0, uint16_t c = 0) {
    return H::of(to_odd(f(H{a}.value(), H{b}.value(), H{c}.value()))).bits;
  }
};
template <class H>
struct Two {
  using Register = uint32_t;
  template <class F>
  static Register of(F f, uint32_t a, uint32_t b = 0, uint32_t c = 0) {
    const uint32_t low = One<H>::of(f, uint16_t(a), uint16_t(b), uint16_t(c));
    return low | uint32_t(One<H>::of(f, uint16_t(a >> 16), uint16_t(b >> 16), uint16_t(c >> 16))) << 16;
  }
};

template <class P>
bool narrow(Decoder& d, const std::string& op) {
  using R = typename P::Register;
  d.now.kind = Kind::half;
  if (d.has("sat") || d.has("relu")) return false;
  const auto two = [&](auto f) {
    using F = decltype(f);
    d.map<R, R, R>([](R a, R b) { return P::of([](double x, double y, double) { return F{}(x, y); }, a, b); });
    return true;
  };
  if (op == "add") return two([](double x, double y) { return x + y; });
  if (op == "sub") return two([](double x, double y) { return x - y; });
  if (op == "mul") return two([](double x, double y) { return x * y; });
  const bool nan = d.has("NaN");
  if (op == "min" && nan) return two([](double x, double y) { return x != x || y != y ? NAN : least(x, y); });
  if (op == "max" && nan) return two([](double x, double y) { return x != x || y != y ? NAN : most(x, y); });
  if (op == "min") return two([](double x, double y) { return least(x, y); });
  if (op == "max") return two([](double x, double y) { return most(x, y); });
  if (op == "fma") {
    d.map<R, R, R, R>(
        [](R a, R b, R c) { return P::of([](double x, double y, double z) { return x * y + z; }, a, b, c); });
    return true;
  }
  if (op == "neg" || op == "abs") {
    constexpr R signs = R(sizeof(R) == 2 ? 0x8000 : 0x80008000u);
    if (op == "neg") return d.map<R, R>([](R a) { return R(a ^ signs); }), true;
    return d.map<R, R>([](R a) { return R(a & ~signs); }), true;
  }
  return false;
}

}  // namespace

bool decode_float(Decoder& d) {
  const std::string& op = d.word(0);
  const std::string& type = d.type();
  for (const char* name : {"ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"}) {
    if (op == name) return special(d, op);
  }
  for (const char* name : {"add", "sub", "mul", "fma", "mad", "div", "min", "max", "neg", "abs", "copysign"}) {
    if (op != name) continue;
    if (type == "f32") return d.has("ftz") ? single<true>(d, op) : single<false>(d, op);
    if (type == "f64") return wide(d, op);
    if (type == "f16") return narrow<One<Half>>(d, op);
    if (type == "bf16") return narrow<One<Bfloat>>(d, op);
    if (type == "f16x2") return narrow<Two<Half>>(d, op);
    if (type == "bf16x2") return narrow<Two<Bfloat>>(d, op);
  }
  return false;
}

}  // namespace machine
