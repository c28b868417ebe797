// Between the storage type S and the compute type T of an element. No include guard: included once per instruction set.

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
