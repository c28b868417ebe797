// One panel of Gauss-Legendre nodes of a score: its integral, the mass of its exponential and the errors of both;
// formulas as in fastcsm/reference/quadrature.py. No include guard: included once per instruction set.

constexpr double kInfinity = __builtin_inf(), kNaN = __builtin_nan("");

struct Panel {
  double a, h, s[kNodes];
  double integral, log_mass, error, rounding, mass_error;
  double left, left_slope, right, right_slope;  // s and s' at the ends

  double node(const Quadrature& q, int k) const { return a + h / 2 * (q.nodes[k] + 1); }
};

FASTCSM_INLINE double larger(double a, double b) { return a > b ? a : b; }
FASTCSM_INLINE double smaller(double a, double b) { return a < b ? a : b; }

// out[j] = factor * sum_i s[i] table[i][j].
template <int m>
FASTCSM_INLINE void from_nodes(const double* s, const double (*table)[m], double factor, double* out) {
  using V = Vec<double>;
  for (int j = 0; j < m; j += V::W) {
    V sum(0);
    for (int i = 0; i < kNodes; ++i) sum += V(s[i]) * V::load(table[i] + j);
    (sum * V(factor)).store(out + j);
  }
}

// exp(local - most) in place; returns the sum with weights.
template <int m>
FASTCSM_INLINE double weighted_exp(double* local, double most, const double* weights) {
  using V = Vec<double>;
  V sum(0);
  for (int j = 0; j < m; j += V::W) {
    const V p = exp_(V::load(local + j) - V(most));
    p.store(local + j);
    sum += p * V::load(weights + j);
  }
  return sum.sum();
}

// The panel's exp(L) at the fine nodes, relative to the largest, whose logarithm is returned.
inline double fine_density(const Quadrature& q, const Panel& p, double* density, double& sum) {
  from_nodes<kFine>(p.s, q.to_fine, p.h / 2, density);
  double most = density[0];
  for (int j = 1; j < kFine; ++j) most = larger(most, density[j]);
  sum = weighted_exp<kFine>(density, most, q.fine_weights);
  return most;
}

// All but a, h and s of a panel.
inline void summarize(const Quadrature& q, Panel& p, double unit) {
  const double half = p.h / 2;
  alignas(64) double c[kNodes], fine[kFine], nodes[kNodes];
  double mass;
  const double most = fine_density(q, p, fine, mass);
  from_nodes<kNodes>(p.s, q.coefficients, 1, c);
  from_nodes<kNodes>(p.s, q.to_nodes, half, nodes);
  const double rough = weighted_exp<kNodes>(nodes, most, q.weights);
  double integral = 0, size = 0, low = p.s[0], high = p.s[0];
  for (int i = 0; i < kNodes; ++i) {
    const double s = p.s[i];
    integral += q.weights[i] * s;
    size += q.weights[i] * __builtin_fabs(s);
    low = smaller(low, s), high = larger(high, s);
  }
  p.integral = half * integral;
  p.log_mass = most + __builtin_log(half * mass);
  double inside = 0;
  for (int k = kFine - kTop; k < kFine; ++k) {
    double d = 0;
    for (int f = 0; f < kFine; ++f) d += fine[f] * q.fine_coefficients[f][k];
    inside += __builtin_fabs(d) * 4 / (2 * k + 1);
  }
  p.mass_error = larger(__builtin_fabs(rough - mass), inside) / mass;
  const double place = larger(__builtin_fabs(p.a), __builtin_fabs(p.a + p.h));
  p.rounding = kRounding * unit * (half * size + place * (high - low));
  double top = 0, middle = 0, sign = 1;
  p.left = p.left_slope = p.right = p.right_slope = 0;
  for (int k = 0; k < kNodes; ++k, sign = -sign) {
    const double slope = k * (k + 1) / 2 / half;
    p.left += sign * c[k], p.right += c[k];
    p.left_slope -= sign * slope * c[k], p.right_slope += slope * c[k];
    const double most_of_k = __builtin_fabs(c[k]) * 2 / (2 * k + 1);  // |integral from -1 of P_k| <= 2 / (2k + 1)
    if (k >= kNodes - kTop) {
      top += most_of_k;
    } else if (k >= kNodes - 2 * kTop) {
      middle += most_of_k;
    }
  }
  p.error = 2 * half * top * larger(2 * top < middle ? top / (middle - top) : 1, kLeast);
}

// Log-mass beyond a point of density 1 where the score towards the inside is ``inward``; infinite if there is none.
inline double log_tail(double inward, double slope) {
  const double ratio = slope / (inward * inward);
  return inward > 0 && ratio < kHeaviest ? -__builtin_log(inward * (1 - ratio)) : kInfinity;
}
