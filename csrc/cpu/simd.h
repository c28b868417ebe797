// Vectors of FASTCSM_VECTOR_BYTES in the compiler's own vector extension, and the elementary functions on them.
// Polynomials are minimax fits (relative error below 5e-9 for float, 6e-20 for double, before rounding). Under
// FASTCSM_REDUCED, where operands of products are rounded to 3 digits anyway, float functions stop at 5: shorter
// polynomials and an approximate reciprocal. No include guard: included once per instruction set.

#ifndef FASTCSM_INLINE
#define FASTCSM_INLINE inline __attribute__((always_inline))
#endif

template <class T>
struct VecTypes;
template <>
struct VecTypes<float> {
  typedef float N __attribute__((vector_size(FASTCSM_VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(FASTCSM_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(FASTCSM_VECTOR_BYTES)));
  typedef int32_t Int;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f, kExpMin = -87.3f;
  static constexpr float kPi2Hi = 1.5703125f, kPi2Mid = 4.837512969970703e-4f, kPi2Lo = 7.549789948768648e-8f;
};
template <>
struct VecTypes<double> {
  typedef double N __attribute__((vector_size(FASTCSM_VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(FASTCSM_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(FASTCSM_VECTOR_BYTES)));
  typedef int64_t Int;
  static constexpr double kMagic = 6755399441055744.0;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLn2Hi = 0.693147180369123816490, kLn2Lo = 1.90821492927058770002e-10, kExpMin = -708.0;
  static constexpr double kPi2Hi = 1.57079625129699707031, kPi2Mid = 7.54978941586159635336e-8,
                          kPi2Lo = 5.39030285815811905890e-15;
};

// A list of equal elements is what the compiler turns into one broadcast; a loop over elements is not.
template <class N, int W, class E>
FASTCSM_INLINE N splat(E x) {
  if constexpr (W == 2) {
    return N{x, x};
  } else if constexpr (W == 4) {
    return N{x, x, x, x};
  } else if constexpr (W == 8) {
    return N{x, x, x, x, x, x, x, x};
  } else {
    return N{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
  }
}

template <class T>
struct Vec {
  using N = typename VecTypes<T>::N;
  using I = typename VecTypes<T>::I;
  static constexpr int W = FASTCSM_VECTOR_BYTES / sizeof(T);
  N v;
  FASTCSM_INLINE Vec() {}
  FASTCSM_INLINE Vec(N n) : v(n) {}
  FASTCSM_INLINE explicit Vec(double x) : v(splat<N, W>(static_cast<T>(x))) {}
  FASTCSM_INLINE explicit Vec(float x) : v(splat<N, W>(static_cast<T>(x))) {}
  FASTCSM_INLINE explicit Vec(int x) : v(splat<N, W>(static_cast<T>(x))) {}
  static FASTCSM_INLINE Vec load(const T* p) { return N(*reinterpret_cast<const typename VecTypes<T>::U*>(p)); }
  FASTCSM_INLINE void store(T* p) const { *reinterpret_cast<typename VecTypes<T>::U*>(p) = v; }
  FASTCSM_INLINE Vec& operator+=(Vec o) {
    v += o.v;
    return *this;
  }
  FASTCSM_INLINE T sum() const {
    T s[W];
    store(s);
    for (int h = W / 2; h > 0; h /= 2)
      for (int i = 0; i < h; ++i) s[i] += s[i + h];
    return s[0];
  }
};

template <class T>
FASTCSM_INLINE typename Vec<T>::I integers(uint64_t x) {
  return splat<typename Vec<T>::I, Vec<T>::W>(static_cast<typename VecTypes<T>::Int>(x));
}

template <class T>
FASTCSM_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
FASTCSM_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
FASTCSM_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
FASTCSM_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
#if FASTCSM_REDUCED
  if constexpr (sizeof(T) == 4) return a.v * (typename Vec<T>::N)_mm512_rcp14_ps((__m512)b.v);
#endif
  return a.v / b.v;
}
template <class T>
FASTCSM_INLINE Vec<T> operator-(Vec<T> a) {
  return -a.v;
}
template <class T>
FASTCSM_INLINE typename Vec<T>::I operator>(Vec<T> a, Vec<T> b) {
  return a.v > b.v;
}
template <class T>
FASTCSM_INLINE typename Vec<T>::I operator>=(Vec<T> a, Vec<T> b) {
  return a.v >= b.v;
}
template <class T>
FASTCSM_INLINE typename Vec<T>::I operator<(Vec<T> a, Vec<T> b) {
  return a.v < b.v;
}
template <class T>
FASTCSM_INLINE typename Vec<T>::I operator<=(Vec<T> a, Vec<T> b) {
  return a.v <= b.v;
}

template <class T>
FASTCSM_INLINE Vec<T> select_(typename Vec<T>::I mask, Vec<T> a, Vec<T> b) {
  return mask ? a.v : b.v;
}
template <class T>
FASTCSM_INLINE Vec<T> abs_(Vec<T> a) {
  const auto keep = integers<T>(~(uint64_t(1) << (8 * sizeof(T) - 1)));
  return (typename Vec<T>::N)((typename Vec<T>::I)a.v & keep);
}
template <class T>
FASTCSM_INLINE Vec<T> sqrt_(Vec<T> a) {
  T t[Vec<T>::W];
  a.store(t);
  for (int i = 0; i < Vec<T>::W; ++i) t[i] = sizeof(T) == 4 ? __builtin_sqrtf(t[i]) : __builtin_sqrt(t[i]);
  return Vec<T>::load(t);
}

template <class T, int K>
FASTCSM_INLINE Vec<T> polynomial(const T (&c)[K], Vec<T> x) {
  Vec<T> p(c[K - 1]);
#pragma GCC unroll 16
  for (int k = K - 2; k >= 0; --k) p = p * x + Vec<T>(c[k]);
  return p;
}

// The larger of the two, x where it is no number.
template <class T>
FASTCSM_INLINE Vec<T> at_least(Vec<T> x, Vec<T> low) {
#if FASTCSM_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (typename Vec<T>::N)_mm512_max_ps((__m512)low.v, (__m512)x.v);
#endif
  return select_(x < low, low, x);
}

// x = n ln 2 + r, x <= 88: returns expm1(r) and the vector 2^n. NaN passes through r.
template <class T>
FASTCSM_INLINE Vec<T> expm1_reduced(Vec<T> x, Vec<T>& scale) {
  using C = VecTypes<T>;
  using V = Vec<T>;
  x = at_least(x, V(C::kExpMin));
  const V shifted = x * V(1.4426950408889634074) + V(C::kMagic);
  const V n = shifted - V(C::kMagic);
  constexpr bool kShort = FASTCSM_REDUCED && sizeof(T) == 4;
  const V r = kShort ? x - n * V(0.69314718055994530942) : (x - n * V(C::kLn2Hi)) - n * V(C::kLn2Lo);
  scale = (typename V::N)(((typename V::I)shifted.v << C::kMantissa) + integers<T>(uint64_t(C::kBias) << C::kMantissa));
  V p;
  if constexpr (kShort) {
    constexpr T c[] = {0.4999895452f, 0.1675390538f, 0.04192090592f};
    p = polynomial(c, r);
  } else if constexpr (sizeof(T) == 4) {
    constexpr T c[] = {0.5000000096f, 0.1666651884f, 0.04166620411f, 0.00836888973f, 0.001395059054f};
    p = polynomial(c, r);
  } else {
    constexpr T c[] = {0.5,
                       0.16666666666666683845,
                       0.041666666666666723658,
                       0.0083333333333167382885,
                       0.0013888888888858774803,
                       0.00019841269897059845602,
                       0.000024801587373182022521,
                       2.755723423580939016e-6,
                       2.7557233781931257514e-7,
                       2.5112240207825395275e-8,
                       2.0926825203572246095e-9};
    p = polynomial(c, r);
  }
  return r + r * r * p;
}

template <class T>
FASTCSM_INLINE Vec<T> exp_(Vec<T> x) {
  Vec<T> scale;
  const Vec<T> m = expm1_reduced(x, scale);
  return scale + scale * m;
}

// Relative accuracy is kept near 0, where the scale is exactly 1.
template <class T>
FASTCSM_INLINE Vec<T> expm1_(Vec<T> x) {
  Vec<T> scale;
  const Vec<T> m = expm1_reduced(x, scale);
  return scale * m + (scale - Vec<T>(1));
}

// 2 atanh(s) for |s| <= 1/3.
template <class T, bool kShort = FASTCSM_REDUCED && sizeof(T) == 4>
FASTCSM_INLINE Vec<T> twice_atanh_(Vec<T> s) {
  const Vec<T> v = s * s;
  Vec<T> p;
  if constexpr (kShort) {
    constexpr T c[] = {0.3324553108f, 0.2245576549f};
    p = polynomial(c, v);
  } else if constexpr (sizeof(T) == 4) {
    constexpr T c[] = {0.3333320658f, 0.2001084906f, 0.1399957371f, 0.1401222827f};
    p = polynomial(c, v);
  } else {
    constexpr T c[] = {0.33333333333333333339,  0.19999999999999995843,  0.14285714285715310875,
                       0.11111111110983832736,  0.090909091002210033874, 0.07692307255166560113,
                       0.066666804989974794218, 0.058820498145972067528, 0.052678057558616100165,
                       0.047123402056198766529, 0.047057877362044309903, 0.023534309660329007909,
                       0.07877589425927387129};
    p = polynomial(c, v);
  }
  const Vec<T> s2 = s + s;
  return s2 + s2 * (v * p);
}

// log(x) for normal x > 0; of the noise, so exact to rounding in every mode.
template <class T>
FASTCSM_INLINE Vec<T> log_(Vec<T> x) {
  using C = VecTypes<T>;
  using V = Vec<T>;
  // The exponent of x * sqrt(2), so that the mantissa lies in [1/sqrt 2, sqrt 2).
  const typename V::I bits = (typename V::I)x.v;
  const typename V::I half = integers<T>(sizeof(T) == 4 ? 0x004afb0d : 0x00095f619980c433ull);
  const typename V::I e = ((bits + half) >> C::kMantissa) - integers<T>(C::kBias);
  const typename V::I mantissa = bits - (e << C::kMantissa);
  const V n = __builtin_convertvector(e, typename V::N);
  const V m = (typename V::N)mantissa;
  return n * V(C::kLn2Hi) + (twice_atanh_<T, false>(V((m - V(1)).v / (m + V(1)).v)) + n * V(C::kLn2Lo));
}

// sin and cos of r in [-pi/4, pi/4].
template <class T>
FASTCSM_INLINE void sincos_reduced(Vec<T> r, Vec<T>& s, Vec<T>& c) {
  const Vec<T> v = r * r;
  Vec<T> p, q;
  if constexpr (sizeof(T) == 4) {
    constexpr T a[] = {-0.1666666664f, 0.008333329362f, -0.000198393272f, 2.718237813e-6f};
    constexpr T b[] = {0.04166666662f, -0.001388888372f, 2.479951182e-5f, -2.720955125e-7f};
    p = polynomial(a, v);
    q = polynomial(b, v);
  } else {
    constexpr T a[] = {-0.16666666666666666641,   0.0083333333333333227015,  -0.00019841269841254988859,
                       2.7557319214148638784e-6,  -2.5052104900478059735e-8, 1.6058365185056304438e-10,
                       -7.5786250837234590965e-13};
    constexpr T b[] = {0.041666666666666666614,   -0.001388888888888887403, 0.000024801587301571381397,
                       -2.7557319215325723187e-7, 2.0876754354672117902e-9, -1.1470291941083445442e-11,
                       4.7380483236107643461e-14};
    p = polynomial(a, v);
    q = polynomial(b, v);
  }
  s = r + r * (v * p);
  c = (Vec<T>(1) - Vec<T>(0.5) * v) + v * v * q;
}

// sin and cos of the angle quarter * pi/2 + r, |r| <= pi/4; quarter an integer held as a real number, below 2^21.
template <class T>
FASTCSM_INLINE void sincos_quarter(Vec<T> quarter, Vec<T> r, Vec<T>& s, Vec<T>& c) {
  using C = VecTypes<T>;
  using V = Vec<T>;
  V sr, cr;
  sincos_reduced(r, sr, cr);
  const typename V::I n = (typename V::I)(quarter + V(C::kMagic)).v;
  const typename V::I one = integers<T>(1), two = integers<T>(2);
  const typename V::I swap = (n & one) != 0;
  s = select_(swap, cr, sr);
  c = select_(swap, sr, cr);
  s = select_((n & two) != 0, -s, s);
  c = select_(((n + one) & two) != 0, -c, c);
}

// Arguments beyond the range of the three-part reduction go to the C library, one by one.
template <class T>
FASTCSM_INLINE void sincos_(Vec<T> x, Vec<T>& s, Vec<T>& c) {
  using C = VecTypes<T>;
  using V = Vec<T>;
  const V limit(sizeof(T) == 4 ? 8192.0 : 1e6);
  const V q = (x * V(0.63661977236758134308) + V(C::kMagic)) - V(C::kMagic);
  const V r = ((x - q * V(C::kPi2Hi)) - q * V(C::kPi2Mid)) - q * V(C::kPi2Lo);
  sincos_quarter(q, r, s, c);
  const typename V::I inside = abs_(x) <= limit;
  typename VecTypes<T>::Int all = -1;
  for (int i = 0; i < V::W; ++i) all &= inside[i];
  if (__builtin_expect(all == 0, 0)) {
    for (int i = 0; i < V::W; ++i) {
      if (!inside[i]) {
        s.v[i] = static_cast<T>(__builtin_sin(static_cast<double>(x.v[i])));
        c.v[i] = static_cast<T>(__builtin_cos(static_cast<double>(x.v[i])));
      }
    }
  }
}

// cos(2 pi u) for u in [0, 1) with at most 24 bits: the reduction is exact.
template <class T>
FASTCSM_INLINE Vec<T> cos_turn(Vec<T> u) {
  using V = Vec<T>;
  const V quarter = (u * V(4) + V(VecTypes<T>::kMagic)) - V(VecTypes<T>::kMagic);
  V s, c;
  sincos_quarter(quarter, (u - quarter * V(0.25)) * V(6.283185307179586477), s, c);
  return c;
}

#include "common/activations.h"

// The statement with A the activation of the code.
#define FASTCSM_BY_ACTIVATION(code, ...)                       \
  switch (code) {                                              \
    FASTCSM_ACTIVATION(case kSoftplus, kSoftplus, __VA_ARGS__) \
    FASTCSM_ACTIVATION(case kTanh, kTanh, __VA_ARGS__)         \
    FASTCSM_ACTIVATION(case kSilu, kSilu, __VA_ARGS__)         \
    FASTCSM_ACTIVATION(case kGelu, kGelu, __VA_ARGS__)         \
    FASTCSM_ACTIVATION(case kElu, kElu, __VA_ARGS__)           \
    FASTCSM_ACTIVATION(case kRelu, kRelu, __VA_ARGS__)         \
    FASTCSM_ACTIVATION(default, kSigmoid, __VA_ARGS__)         \
  }
#define FASTCSM_ACTIVATION(label, activation, ...) \
  label:                                           \
  {                                                \
    constexpr int A = activation;                  \
    __VA_ARGS__;                                   \
    break;                                         \
  }

// f alone, without f' and f''. Made once for many vectors, so that what it looks up stays in registers.
template <class T, int A>
struct Value {
  FASTCSM_INLINE Vec<T> operator()(Vec<T> x) const {
    Vec<T> f, d, e;
    activate<A>(x, f, d, e);
    return f;
  }
};

#if FASTCSM_VECTOR_BYTES == 64
template <int A>
  requires(A == kSoftplus || A == kSilu || A == kGelu)
struct Value<float, A> {
  const fastcsm::ValueTable& table = *fastcsm::value_table(A);
  __m512 low[5], high[5];

  FASTCSM_INLINE Value() {
    for (int k = 0; k < 5; ++k) {
      low[k] = _mm512_load_ps(table.coefficient[k]);
      high[k] = _mm512_load_ps(table.coefficient[k] + 16);
    }
  }
  FASTCSM_INLINE Vec<float> operator()(Vec<float> x) const {
    const __m512 one = _mm512_set1_ps(1), v = (__m512)x.v;
    const __m512 t = _mm512_min_ps(_mm512_set1_ps(table.last), (__m512)(abs_(x) * Vec<float>(table.scale)).v);
    const __m512 z = _mm512_add_ps(t, one);
    const __m512i segment = _mm512_srli_epi32((__m512i)z, 20);
    const __m512 begin = (__m512)_mm512_and_si512((__m512i)z, _mm512_set1_epi32(~0 << 20));
    const __m512 r = _mm512_sub_ps(t, _mm512_sub_ps(begin, one));
    __m512 g = _mm512_permutex2var_ps(low[4], segment, high[4]);
#pragma GCC unroll 4
    for (int k = 3; k >= 0; --k) g = _mm512_fmadd_ps(g, r, _mm512_permutex2var_ps(low[k], segment, high[k]));
    return (Vec<float>::N)_mm512_add_ps(g, _mm512_max_ps(_mm512_setzero_ps(), v));
  }
};
#endif
