// f alone of an activation with f(x) = max(x, 0) + g(|x|), g smooth and 0 at infinity: g by 32 polynomials of degree 4,
// whose coefficients fit in the two registers of a table look-up each. Absolute error below 4e-8, half a unit in the
// last place of f(1); relative where f is 0.
#pragma once

namespace fastcsm {

// With t = min(scale |x|, last) and z = 1 + t in [1, 16), polynomial i = z's lowest two bits of exponent and highest
// three of mantissa, turned by 24, is g in the distance of t from where the polynomial's interval begins.
struct alignas(64) ValueTable {
  float coefficient[5][32];
  float scale, last;
};

// Of softplus, silu and gelu; null for the others.
const ValueTable* value_table(int activation);

}  // namespace fastcsm
