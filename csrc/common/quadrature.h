// Gauss-Legendre rules of 16 and 32 nodes, and the integrals of the polynomials through their nodes
// (fastcsm/reference/quadrature.py), and the limits of panels and their errors.
#pragma once

#include <cmath>
#include <cstdint>

#ifndef FASTCSM_INLINE
#define FASTCSM_INLINE inline __attribute__((always_inline))
#endif

namespace fastcsm {

constexpr int kNodes = 16, kFine = 32, kTop = 4;
constexpr int kMaxPanels = 64, kMaxMoves = 16, kMaxReach = 48;
constexpr double kHeaviest = 0.8, kLeast = 0.25, kRounding = 8.0, kCancelled = 4 * 0x1p-52, kUnresolved = 4;

// Tables are stored so that the index of the result runs fastest; every one begins at a multiple of 64 bytes.
struct Quadrature {
  double nodes[kNodes], weights[kNodes], fine_weights[kFine];
  double coefficients[kNodes][kNodes];     // [node][k] Legendre coefficients from values at the nodes
  double to_fine[kNodes][kFine];           // [node][fine node] integral from -1
  double to_nodes[kNodes][kNodes];         // [node][node] integral from -1
  double fine_coefficients[kFine][kFine];  // [fine node][k]
};
const Quadrature& quadrature();

// Width of the panel by which an end moves next, in units of the first.
FASTCSM_INLINE double growth(int moves) { return ldexp(1., moves > kMaxMoves ? 3 * moves - 2 * kMaxMoves : moves); }

// How often an end must move to come so far, in units of the first width: by one more at most.
FASTCSM_INLINE int moves_to(double distance, int moves) {
  const double exponent = log2(distance > 1 ? distance : 1), later = (exponent + 2 * kMaxMoves) / 3;
  const double last = ceil(exponent < later ? exponent : later) + 1;
  const int more = (last < kMaxReach ? static_cast<int>(last) : kMaxReach) - moves;
  return more > 1 ? more : 1;
}

// Sum of c_k P_k(t), k < n, and its integral from -1 to t.
inline void series(const double* c, int n, double t, double& value, double& integral) {
  double before = 1, p = t;
  value = c[0], integral = c[0] * (t + 1);
  for (int k = 1; k < n; ++k) {
    const double after = ((2 * k + 1) * t * p - k * before) / (k + 1);
    value += c[k] * p;
    integral += c[k] * (after - before) / (2 * k + 1);
    before = p, p = after;
  }
}

}  // namespace fastcsm
