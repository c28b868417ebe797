#include "common/draw_args.h"

#include <algorithm>

namespace fastcsm {

LangevinArgs langevin_args(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                           const Tensor& frequencies, int64_t activation, const std::vector<double>& step_sizes,
                           const std::vector<double>& score_scales, const std::vector<double>& stage_features,
                           int64_t steps, int64_t seed, const Tensor& samples, const Tensor& dimensions,
                           int64_t first_step, double squash, bool reduced) {
  LangevinArgs a{};
  a.head = head_args(context, x, weights, biases, frequencies, activation, reduced);
  a.rows = x.numel();
  a.stages = static_cast<int64_t>(step_sizes.size());
  a.steps = steps;
  a.first_step = first_step;
  a.squash = squash;
  a.seed = static_cast<uint64_t>(seed);
  expect(score_scales.size() == step_sizes.size() &&
             (stage_features.empty() || (stage_features.size() == step_sizes.size() && a.head.context >= 1)),
         "score_scales and stage_features must have one value a stage");
  expect(squash == 0 || (squash > 0 && stage_features.size() == step_sizes.size()),
         "squash must not be negative, and needs a log sigma in stage_features for every stage");
  a.step_sizes = step_sizes.data();
  a.score_scales = score_scales.data();
  a.stage_features = stage_features.empty() ? nullptr : stage_features.data();
  const int64_t given = a.head.context - (stage_features.empty() || squash > 0 ? 0 : 1);
  a.context = checked(context, "context", x.scalar_type(), a.rows * given);
  a.x = checked(x, "x", x.scalar_type(), a.rows);
  using torch::headeronly::ScalarType;
  a.samples = static_cast<const int64_t*>(checked(samples, "samples", ScalarType::Long, a.rows));
  a.dimensions = static_cast<const int64_t*>(checked(dimensions, "dimensions", ScalarType::Long, a.rows));
  return a;
}

Draw::Draw(const Tensor& x, const Tensors& weights, const Tensors& biases, const Tensor& frequencies,
           int64_t activation, const Tensors& made_weights, const Tensors& made_biases, const Tensors& degrees,
           const Tensor& order, int64_t made_activation, bool residual, bool stage_feature, int64_t seed,
           const Tensor& samples, int64_t first, int64_t last, bool denoise, bool reduced)
    : x_(torch::stable::clone(x)), clean_(torch::stable::clone(x)), denoise_(denoise), due_(degrees.size()) {
  using torch::headeronly::ScalarType;
  DrawArgs& a = args;
  expect(x.dim() == 2, "x must have shape (samples, variables)");
  a.rows = x.size(0), a.variables = x.size(1);
  a.storage = storage_of(x);
  a.reduced = reduced;
  a.activation = static_cast<int>(made_activation);
  a.residual = residual;
  a.layers = static_cast<int64_t>(degrees.size());
  expect(a.layers >= 1 && a.layers < kMaxMadeLayers, "the network has too few or too many layers");
  a.models = static_cast<int64_t>(made_weights.size()) / (a.layers + 1);
  expect(a.models >= 1 && a.models <= kMaxModels, "made_weights must hold the layers of 1 to 64 networks");
  const size_t layers = a.models * (a.layers + 1);
  expect(made_weights.size() == layers && made_biases.size() == layers && weights.size() == biases.size() &&
             !weights.empty() && weights.size() % a.models == 0,
         "weights and biases do not belong to the same number of networks");
  expect(0 <= first && first <= last && last <= a.variables,
         "first and last must satisfy 0 <= first <= last <= variables");
  a.first = first, a.last = last;
  a.order = static_cast<const int64_t*>(checked(order, "order", ScalarType::Long, a.variables));
  for (int64_t l = 0; l < a.layers; ++l) {
    a.width[l] = degrees[l].numel();
    a.degree[l] = static_cast<const int64_t*>(checked(degrees[l], "degrees", ScalarType::Long, a.width[l]));
  }
  if (x.is_cpu()) count_due();
  const size_t head_layers = weights.size() / a.models;
  const int64_t given = weights[0].dim() == 2 ? weights[0].size(1) - 1 - 2 * frequencies.numel() : 0;
  a.context = given - (stage_feature ? 1 : 0);
  expect(a.context >= 0, "weights[0] has fewer columns than the context and the features of x");
  for (int64_t m = 0; m < a.models; ++m) {
    const auto slice = [&](const Tensors& all) {
      return Tensors(all.begin() + m * head_layers, all.begin() + (m + 1) * head_layers);
    };
    a.heads[m] = head_args(made_weights[0], x, slice(weights), slice(biases), frequencies, activation, reduced);
    expect(a.heads[m].context == given, "the heads must have the same number of context features");
    int64_t inputs = a.variables;
    for (int64_t l = 0; l <= a.layers; ++l) {
      const int64_t outputs = l < a.layers ? a.width[l] : a.variables * a.context;
      const size_t i = m * (a.layers + 1) + l;
      a.weight[m][l] = checked(made_weights[i], "made_weights", x.scalar_type(), outputs * inputs);
      a.bias[m][l] = checked(made_biases[i], "made_biases", x.scalar_type(), outputs);
      inputs = outputs;
    }
  }
  a.seed = static_cast<uint64_t>(seed);
  a.samples = static_cast<const int64_t*>(checked(samples, "samples", ScalarType::Long, a.rows));
  checked(x, "x", x.scalar_type(), a.rows * a.variables);
  a.x = x_.mutable_data_ptr();
  a.clean = denoise ? clean_.mutable_data_ptr() : nullptr;
}

void Draw::count_due() {
  DrawArgs& a = args;
  a.raster = true;
  for (int64_t k = 0; k < a.variables; ++k) {
    expect(a.order[k] >= 0 && a.order[k] < a.variables, "order must be a permutation of the variables");
    a.raster = a.raster && a.order[k] == k;
  }
  for (int64_t l = 0; l < a.layers; ++l) {
    const int64_t *degree = a.degree[l], *end = degree + a.width[l];
    expect(std::is_sorted(degree, end), "hidden units must be sorted by degree");
    for (int64_t k = 0; k <= a.variables; ++k) due_[l].push_back(std::upper_bound(degree, end, k) - degree);
    expect(due_[l][0] == 0, "degrees of hidden units must be at least 1");
    a.due[l] = due_[l].data();
  }
}

void Draw::set_stages(const std::vector<double>& step_sizes, const std::vector<double>& score_scales,
                      const std::vector<double>& stage_features, int64_t steps, double denoise) {
  DrawArgs& a = args;
  a.stages = static_cast<int64_t>(step_sizes.size());
  expect(a.models == 1 || a.models == a.stages, "made_weights must hold the layers of one network, or of one a stage");
  expect(static_cast<int64_t>(score_scales.size()) == a.stages &&
             (stage_features.empty() || static_cast<int64_t>(stage_features.size()) == a.stages) &&
             (stage_features.empty() || a.models == 1),
         "score_scales and stage_features must have one value a stage");
  a.step_sizes = step_sizes.data();
  a.score_scales = score_scales.data();
  a.stage_features = stage_features.empty() ? nullptr : stage_features.data();
  a.steps = steps;
  a.denoise = a.stages > 0 ? denoise * score_scales.back() : 0;
}

std::tuple<Tensor, Tensor> Draw::results() const { return {x_, denoise_ ? clean_ : torch::stable::clone(x_)}; }

}  // namespace fastcsm
