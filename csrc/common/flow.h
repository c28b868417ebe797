// The probability flow on every device: from tensors to pointers, and the steps of Dormand and Prince (1980), order 5
// with an embedded 4: times and coefficients of the stages, weights of the error, and how steps are controlled, as in
// fastcsm/reference/probability_flow.py.
#pragma once

#include <stdexcept>
#include <tuple>

#include "common/launch.h"

namespace fastcsm {

struct FlowArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x;
  double sigma_from, sigma_to, tolerance;
  double squash;  // u0 of a preconditioned head, or 0
  bool change;
  void* out[3];  // x, change, error
};

inline FlowArgs flow_args(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                          const Tensor& frequencies, int64_t activation, double sigma_from, double sigma_to,
                          double tolerance, bool change, double squash, bool reduced) {
  FlowArgs a{};
  a.head = head_args(context, x, weights, biases, frequencies, activation, reduced);
  a.rows = x.numel();
  if (a.head.context < 1 || !(sigma_from > 0) || !(sigma_to > 0) || !(tolerance > 0) || !(squash >= 0))
    throw std::invalid_argument(
        "fastcsm: the head must read log sigma, and sigma_from, sigma_to and tolerance must be positive, squash not "
        "negative");
  a.context = checked(context, "context", x.scalar_type(), a.rows * (a.head.context - (squash == 0)));
  a.x = checked(x, "x", x.scalar_type(), a.rows);
  a.sigma_from = sigma_from, a.sigma_to = sigma_to, a.tolerance = tolerance, a.change = change;
  a.squash = squash;
  return a;
}

// The results, to which `a` is set to point.
inline std::tuple<Tensor, Tensor, Tensor> new_flow(FlowArgs& a, const Tensor& x) {
  Tensors out;
  for (int i = 0; i < 3; ++i) {
    out.push_back(new_tensor(x, {a.rows}, compute_type(x)));
    a.out[i] = out[i].mutable_data_ptr();
  }
  return {out[0], out[1], out[2]};
}

constexpr int kFlowStages = 7, kMaxSteps = 500;
constexpr double kFirstStep = 0.2, kSmallest = 0.2, kLargest = 5.0;
constexpr double kFlowTimes[kFlowStages] = {0, 1. / 5, 3. / 10, 4. / 5, 8. / 9, 1, 1};
constexpr double kFlowStage[kFlowStages][kFlowStages - 1] = {
    {},
    {1. / 5},
    {3. / 40, 9. / 40},
    {44. / 45, -56. / 15, 32. / 9},
    {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
    {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
    {35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84}};
constexpr double kFlowError[kFlowStages] = {71. / 57600,      0,         -71. / 16695, 71. / 1920,
                                            -17253. / 339200, 22. / 525, -1. / 40};

}  // namespace fastcsm
