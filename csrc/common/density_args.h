// From the tensors of conditional densities to pointers, on every device.
#pragma once

#include <tuple>

#include "common/launch.h"

namespace fastcsm {

// The densities of rows; or, when nodes is set, the nodes and weights of their gradients.
struct DensityArgs {
  HeadArgs head;
  int64_t rows, panels;
  const void *context, *point;
  double score_scale, feature, low, high, tolerance, squash, unit;
  bool has_feature, inverse;
  void *out[5], *ends;  // point, log-density, log-normaliser, cdf, error
  void *nodes, *weights, *scores;
  int64_t* counts;
};

// Unit of rounding of the scores: `narrow` where products may round float32 operands, and that of bfloat16 for such.
double rounding_unit(Storage storage, bool reduced, double narrow);

// Checked arguments; results are for the two functions below.
DensityArgs density_args(const Tensor& context, const Tensor& point, const Tensors& weights, const Tensors& biases,
                         const Tensor& frequencies, int64_t activation, double score_scale,
                         const std::vector<double>& stage_features, double low, double high, double tolerance,
                         int64_t panels, double squash, bool inverse, bool reduced, double narrow);

// Results of the ops conditional_density and conditional_density_nodes, to which `a` is set to point.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> new_densities(DensityArgs& a, const Tensor& point);
std::tuple<Tensor, Tensor, Tensor, Tensor> new_density_nodes(DensityArgs& a, const Tensor& point);

}  // namespace fastcsm
