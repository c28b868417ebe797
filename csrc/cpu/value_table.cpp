#include "cpu/value_table.h"

#include <cmath>

#include "cpu/kernels.h"

namespace fastcsm {
namespace {

constexpr int kDegree = 4;
constexpr double kEnd = 15;  // of t

double softplus(double y) { return std::log1p(std::exp(-y)); }
double silu(double y) { return -y / (1 + std::exp(y)); }
double gelu(double y) { return -y / (1 + std::exp(1.5957691216057307118 * y * (1 + 0.044715 * y * y))); }

// g is below 3e-8 from `end` on, and its last polynomial falls to 0 there.
ValueTable make(double (*g)(double), double end) {
  ValueTable table;
  table.scale = static_cast<float>(kEnd / end);
  table.last = std::nextafter(static_cast<float>(kEnd), 0.0f);
  for (int i = 0; i < 32; ++i) {
    const double width = std::ldexp(0.125, i / 8), begin = width * (8 + i % 8) - 1;
    // Newton's form through the extrema of a Chebyshev polynomial, both ends of the interval among them.
    double node[kDegree + 1], c[kDegree + 1];
    for (int k = 0; k <= kDegree; ++k) {
      node[k] = width * (1 - std::cos(M_PI * k / kDegree)) / 2;
      c[k] = g((begin + node[k]) / table.scale) - (i == 31 ? g(end) * node[k] / width : 0);
    }
    for (int order = 1; order <= kDegree; ++order)
      for (int k = kDegree; k >= order; --k) c[k] = (c[k] - c[k - 1]) / (node[k] - node[k - order]);
    for (int from = kDegree - 1; from >= 0; --from)
      for (int k = from; k < kDegree; ++k) c[k] -= node[from] * c[k + 1];
    for (int k = 0; k <= kDegree; ++k) table.coefficient[k][(i + 24) % 32] = static_cast<float>(c[k]);
  }
  return table;
}

}  // namespace

const ValueTable* value_table(int activation) {
  static const ValueTable tables[] = {make(softplus, 17.5), make(silu, 21), make(gelu, 5.6)};
  return activation == 0 ? &tables[0] : activation == 2 ? &tables[1] : activation == 3 ? &tables[2] : nullptr;
}

}  // namespace fastcsm
