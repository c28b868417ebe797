// The storage type S and the compute type T of elements, and the way between them. No include guard: included once per
// instruction set.

// fn<S, T>() of a storage type.
template <class Fn>
void by_storage(Storage storage, Fn fn) {
  if (storage == Storage::f32) return fn.template operator()<float, float>();
  if (storage == Storage::bf16) return fn.template operator()<Bf16, float>();
#if !FASTCSM_REDUCED
  fn.template operator()<double, double>();
#endif
}

template <class T>
FASTCSM_INLINE T from_storage(T x) {
  return x;
}
FASTCSM_INLINE float from_storage(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
template <class S, class T>
FASTCSM_INLINE S to_storage(T x) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return x;
  } else {
    return {static_cast<uint16_t>(bf16_bits(x))};
  }
}
