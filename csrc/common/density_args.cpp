#include "common/density_args.h"

#include <limits>
#include <stdexcept>

#include "common/quadrature.h"

namespace fastcsm {
using torch::headeronly::ScalarType;

double rounding_unit(Storage storage, bool reduced, double narrow) {
  if (storage == Storage::f64) return std::numeric_limits<double>::epsilon();
  if (storage == Storage::bf16) return 1.0 / 128;
  return reduced ? narrow : double(std::numeric_limits<float>::epsilon());
}

DensityArgs density_args(const Tensor& context, const Tensor& point, const Tensors& weights, const Tensors& biases,
                         const Tensor& frequencies, int64_t activation, double score_scale,
                         const std::vector<double>& stage_features, double low, double high, double tolerance,
                         int64_t panels, double squash, bool inverse, bool reduced, double narrow) {
  DensityArgs a{};
  a.head = head_args(context, point, weights, biases, frequencies, activation, reduced);
  a.rows = point.numel();
  a.has_feature = !stage_features.empty();
  if (stage_features.size() > 1 || (a.has_feature && a.head.context < 1))
    throw std::invalid_argument("fastcsm: stage_features must have at most one value");
  if (panels < 1 || panels > 16 || !(low < high) || !(tolerance > 0))
    throw std::invalid_argument("fastcsm: panels must be in [1, 16], low below high, and tolerance positive");
  if (!(squash >= 0) || (squash > 0 && !a.has_feature))
    throw std::invalid_argument("fastcsm: squash must not be negative, and needs log sigma in stage_features");
  a.feature = a.has_feature ? stage_features[0] : 0;
  a.context =
      checked(context, "context", point.scalar_type(), a.rows * (a.head.context - (a.has_feature && squash == 0)));
  a.point = checked(point, "x", point.scalar_type(), a.rows);
  a.score_scale = score_scale, a.low = low, a.high = high, a.tolerance = tolerance, a.panels = panels;
  a.squash = squash, a.inverse = inverse;
  a.unit = rounding_unit(a.head.storage, reduced, narrow);
  return a;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> new_densities(DensityArgs& a, const Tensor& point) {
  const auto type = compute_type(point);
  Tensors out;
  for (int i = 0; i < 5; ++i) {
    out.push_back(new_tensor(point, {a.rows}, type));
    a.out[i] = out[i].mutable_data_ptr();
  }
  Tensor ends = new_tensor(point, {a.rows, 2}, type);
  a.ends = ends.mutable_data_ptr();
  return {out[0], out[1], out[2], out[3], out[4], ends};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> new_density_nodes(DensityArgs& a, const Tensor& point) {
  const auto type = compute_type(point);
  constexpr int64_t kMost = kMaxPanels * kNodes;
  Tensor t = new_tensor(point, {a.rows, kMost}, point.scalar_type()), weight = new_tensor(point, {a.rows, kMost}, type);
  Tensor count = new_tensor(point, {a.rows}, ScalarType::Long), score = new_tensor(point, {a.rows}, type);
  a.nodes = t.mutable_data_ptr();
  a.weights = weight.mutable_data_ptr();
  a.counts = static_cast<int64_t*>(count.mutable_data_ptr());
  a.scores = score.mutable_data_ptr();
  return {t, weight, count, score};
}

}  // namespace fastcsm
