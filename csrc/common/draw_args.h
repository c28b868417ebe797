// From the tensors of Langevin dynamics and of draws to pointers, on every device.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>

#include "common/launch.h"

namespace fastcsm {

// Langevin dynamics of rows.
struct LangevinArgs {
  HeadArgs head;
  int64_t rows, stages, steps, first_step;
  const void *context, *x;
  const double *step_sizes, *score_scales, *stage_features;  // stage_features may be null
  double squash;                                             // u0 of a preconditioned head, or 0
  const int64_t *samples, *dimensions;
  uint64_t seed;
  void* out;
};

// Checked arguments; the values of the stages must outlive them. The caller says where the result goes.
LangevinArgs langevin_args(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                           const Tensor& frequencies, int64_t activation, const std::vector<double>& step_sizes,
                           const std::vector<double>& score_scales, const std::vector<double>& stage_features,
                           int64_t steps, int64_t seed, const Tensor& samples, const Tensor& dimensions,
                           int64_t first_step, double squash, bool reduced);

constexpr int kMaxMadeLayers = 33;  // hidden layers and the output
constexpr int kMaxModels = 64;      // parameter sets of the staged form

// The draw of variables order[first] .. order[last - 1] of every sample, those before them given in x. Hidden layer l
// has units sorted by degree, due[l][k] of them with degree at most k. A residual network alternates: layer 0 starts
// the stream, layers 1, 3, ... read it through f, layers 2, 4, ... add to it.
struct DrawArgs {
  int64_t rows, variables, context, layers, models, stages, steps, first, last;
  const int64_t *order, *degree[kMaxMadeLayers];
  int64_t width[kMaxMadeLayers];
  const void *weight[kMaxModels][kMaxMadeLayers], *bias[kMaxModels][kMaxMadeLayers];
  int activation;
  bool residual, reduced;
  Storage storage;
  HeadArgs heads[kMaxModels];
  const double *step_sizes, *score_scales, *stage_features;
  uint64_t seed;
  const int64_t* samples;
  double denoise;  // clean = x + denoise * s, s the head's output in the last stage
  void *x, *clean;
  // Of a draw by quantiles: noise levels of the density and of the result, 0 for none, and how to integrate.
  double sigma_from, sigma_to, low, high, tolerance, flow_tolerance, unit;
  int64_t panels;
  // Known where order and degrees lie in the processor's memory: whether order is 0, 1, 2, ..., and the counts.
  bool raster;
  const int64_t* due[kMaxMadeLayers];
};

inline void expect(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(std::string("fastcsm: ") + sentence);
}

// Checked arguments and what they point into. The caller adds what its way of drawing a variable needs.
class Draw {
 public:
  // stage_feature: the heads' last context feature does not come from the network. denoise: a second result is wanted.
  Draw(const Tensor& x, const Tensors& weights, const Tensors& biases, const Tensor& frequencies, int64_t activation,
       const Tensors& made_weights, const Tensors& made_biases, const Tensors& degrees, const Tensor& order,
       int64_t made_activation, bool residual, bool stage_feature, int64_t seed, const Tensor& samples, int64_t first,
       int64_t last, bool denoise, bool reduced);

  // The stages of Langevin dynamics; the values must outlive the draw.
  void set_stages(const std::vector<double>& step_sizes, const std::vector<double>& score_scales,
                  const std::vector<double>& stage_features, int64_t steps, double denoise);

  DrawArgs args{};

  // x with the variables drawn, and the denoised result or a copy.
  std::tuple<Tensor, Tensor> results() const;

 private:
  void count_due();

  Tensor x_, clean_;
  bool denoise_;
  std::vector<std::vector<int64_t>> due_;
};

}  // namespace fastcsm
