// What a preconditioned head reads (fastcsm/reference/preconditioning.py): u = u0 asinh(v / u0) in place of v. No
// include guard: included once per instruction set.

// -ln(tau) of row r, the last of its C context features.
template <class S>
double offset_of(const void* context, int64_t r, int64_t C) {
  return static_cast<double>(from_storage(static_cast<const S*>(context)[(r + 1) * C - 1]));
}

// u0 asinh(v / u0) and its derivative, to rounding in every mode; of asinh(t) = log(1 + m), m = t + sqrt(1 + t^2) - 1,
// and log(2 t) where 1 + t^2 is t^2.
template <class T>
FASTCSM_INLINE Vec<T> squash_(Vec<T> v, Vec<T> u0, Vec<T>& derivative) {
  using V = Vec<T>;
  const V one(1), t = abs_(V(v.v / u0.v));
  const typename V::I far = t > V(sizeof(T) == 4 ? 0x1p13 : 0x1p27);
  const V near = select_(far, one, t), root = sqrt_(one + near * near);
  const V m = near + V((near * near).v / (one + root).v), w = one + m;
  const V lost = m - (w - one);  // of m when w was rounded
  const V log = log_(select_(far, t, w)) + select_(far, V(0.69314718055994530942), V(lost.v / w.v));
  derivative = one.v / select_(far, t, root).v;
  return u0 * select_(v < V(0), -log, log);
}

// The same of n numbers, of which u holds v and then u; both arrays have room for whole vectors.
template <class T>
void squash(int64_t n, double u0, T* u, T* derivative) {
  for (int64_t i = 0; i < n; i += Vec<T>::W) {
    Vec<T> d;
    squash_(Vec<T>::load(u + i), Vec<T>(u0), d).store(u + i);
    d.store(derivative + i);
  }
}
