// f, f' and f'' of every activation, written once for processors (V a vector) and GPUs (V a scalar).
// The includer's namespace supplies exp_, expm1_, twice_atanh_ (|argument| <= 1/3), abs_, select_(mask, a, b), and may
// supply its own sigmoids and softplus_terms.
// No term overflows: exponentials are only taken of arguments <= 0, or of arguments clamped where the result is exact.
// No include guard: included once per namespace.

enum Activation { kSoftplus, kTanh, kSilu, kGelu, kElu, kRelu, kSigmoid };

// sigma(x) and 1 - sigma(x), neither by subtraction.
template <class V>
FASTCSM_INLINE void sigmoids(V x, V& p, V& q) {
  const V e = exp_(-abs_(x));
  const V r = V(1) / (V(1) + e);
  const V er = e * r;
  p = select_(x >= V(0), r, er);
  q = select_(x >= V(0), er, r);
}

// sigma(y), 1 - sigma(y) and log(1 + exp(-y)) for y >= 0.
template <class V>
FASTCSM_INLINE void softplus_terms(V y, V& p, V& q, V& log) {
  const V e = exp_(-y);
  p = V(1) / (V(1) + e);
  q = e * p;
  log = twice_atanh_(e / (e + V(2)));
}

template <int A, class V>
FASTCSM_INLINE void activate(V x, V& f, V& d, V& e) {
  const V zero(0), one(1), two(2);
  if constexpr (A == kSoftplus) {
    V p, q, log;
    softplus_terms(abs_(x), p, q, log);
    f = select_(x > zero, x, zero) + log;
    d = select_(x >= zero, p, q);
    e = p * q;
  } else if constexpr (A == kTanh) {
    const V y = abs_(x);
    const V m = expm1_(select_(y > V(20), V(20), y) * two);
    const V r = one / (m + two), t = m * r;
    f = select_(x < zero, -t, t);
    d = V(4) * (m + one) * r * r;
    e = -two * f * d;
  } else if constexpr (A == kSilu) {
    V p, q;
    sigmoids(x, p, q);
    const V xq = x * q;
    f = x * p;
    d = p * (one + xq);
    e = p * q * (two + x * (q - p));
  } else if constexpr (A == kGelu) {
    const V k(0.7978845608028653559), c(0.044715);
    const V y = select_(x > V(12), V(12), select_(x < V(-12), V(-12), x));
    const V yy = y * y;
    V p, q;
    sigmoids(two * k * y * (one + c * yy), p, q);
    const V u1 = two * k * (one + V(3) * c * yy), u2 = two * k * V(6) * c * y;
    const V pq = p * q;
    f = x * p;
    d = p + y * pq * u1;
    e = pq * (two * u1 + y * (u2 + (q - p) * u1 * u1));
  } else if constexpr (A == kElu) {
    const V m = expm1_(select_(x > zero, zero, x));
    f = select_(x > zero, x, m);
    d = select_(x > zero, one, m + one);
    e = select_(x >= zero, zero, m + one);
  } else if constexpr (A == kRelu) {
    f = select_(x > zero, x, select_(x <= zero, zero, x));
    d = select_(x > zero, one, zero);
    e = zero;
  } else {
    V p, q;
    sigmoids(x, p, q);
    f = p;
    d = p * q;
    e = d * (q - p);
  }
}
