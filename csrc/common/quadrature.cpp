#include "common/quadrature.h"

#include <cmath>

namespace fastcsm {
namespace {

constexpr int kMost = kFine + 1;

// P_0(t) ... P_n(t).
void legendre(int n, double t, double* p) {
  p[0] = 1, p[1] = t;
  for (int k = 1; k < n; ++k) p[k + 1] = ((2 * k + 1) * t * p[k] - k * p[k - 1]) / (k + 1);
}

void rule(int n, double* nodes, double* weights) {
  for (int i = 0; i < n; ++i) {
    double t = -std::cos(M_PI * (i + 0.75) / (n + 0.5)), slope = 1, p[kMost];
    for (int iteration = 0; iteration < 10; ++iteration) {
      legendre(n, t, p);
      slope = n * (t * p[n] - p[n - 1]) / (t * t - 1);
      t -= p[n] / slope;
    }
    nodes[i] = t;
    weights[i] = 2 / ((1 - t * t) * slope * slope);
  }
}

// out[i][k]: Legendre coefficient k of the polynomial through the nodes that is 1 at node i and 0 at the others.
template <int n>
void basis(const double* nodes, const double* weights, double (*out)[n]) {
  for (int i = 0; i < n; ++i) {
    double p[kMost];
    legendre(n, nodes[i], p);
    for (int k = 0; k < n; ++k) out[i][k] = weights[i] * p[k] * (2 * k + 1) / 2;
  }
}

template <int n, int m>
void integrals(const double (*coefficients)[n], const double* to, double (*out)[m]) {
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < m; ++j) {
      double value;
      series(coefficients[i], n, to[j], value, out[i][j]);
    }
  }
}

Quadrature make() {
  Quadrature q{};
  double fine[kFine];
  rule(kNodes, q.nodes, q.weights);
  rule(kFine, fine, q.fine_weights);
  basis<kNodes>(q.nodes, q.weights, q.coefficients);
  basis<kFine>(fine, q.fine_weights, q.fine_coefficients);
  integrals<kNodes, kFine>(q.coefficients, fine, q.to_fine);
  integrals<kNodes, kNodes>(q.coefficients, q.nodes, q.to_nodes);
  return q;
}

}  // namespace

const Quadrature& quadrature() {
  alignas(64) static const Quadrature tables = make();
  return tables;
}

}  // namespace fastcsm
