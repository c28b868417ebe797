// What each kernel's launcher hands to the code compiled for the chosen instruction set: pointers into contiguous
// tensors.
#pragma once

#include "common/head.h"
#include "cpu/value_table.h"

namespace fastcsm {

struct ScoreHeadArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x;
  void *score, *derivative;
};

struct ScoreHeadBackwardArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x, *grad_score, *grad_derivative;
  HeadGradients out;
};

// alpha, beta, gamma are in the compute type; their steps are 0 (one value for all rows) or 1.
struct CsmLossArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x, *alpha, *beta, *gamma;
  int64_t alpha_step, beta_step, gamma_step;
  HeadGradients out;
  double loss;
};

struct LangevinArgs {
  HeadArgs head;
  int64_t rows, stages, steps, first_step;
  const void *context, *x;
  const double *step_sizes, *score_scales, *stage_features;  // stage_features may be null
  const int64_t *samples, *dimensions;
  uint64_t seed;
  void* out;
};

// The densities of rows; or, when nodes is set, the nodes and weights of their gradients.
struct DensityArgs {
  HeadArgs head;
  int64_t rows, panels;
  const void *context, *point;
  double score_scale, feature, low, high, tolerance, unit;
  bool has_feature, inverse;
  void *out[5], *ends;  // point, log-density, log-normaliser, cdf, error
  void *nodes, *weights, *scores;
  int64_t* counts;
};

struct FlowArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x;
  double sigma_from, sigma_to, tolerance;
  bool change;
  void* out[3];  // x, change, error
};

constexpr int kMaxMadeLayers = 33;  // hidden layers and the output
constexpr int kMaxModels = 64;      // parameter sets of the staged form

// The draw of variables order[first] .. order[last - 1] of every sample, those before them given in x. Hidden layer l
// has units sorted by degree, due[l][k] of them with degree at most k. A residual network alternates: layer 0 starts
// the stream, layers 1, 3, ... read it through f, layers 2, 4, ... add to it.
struct DrawArgs {
  int64_t rows, variables, context, layers, models, stages, steps, first, last;
  const int64_t* order;
  bool raster;  // order is 0, 1, 2, ...
  const int64_t* due[kMaxMadeLayers];
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
};

// Of one layer; the forward pass when y is set, else the backward pass. Orders sort inputs and outputs by degree:
// output out_order[o] reads inputs in_order[0] .. in_order[reach[o] - 1]. activation < 0 is the identity.
struct MaskedLinearArgs {
  int64_t rows, inputs, outputs;
  const int64_t *in_order, *out_order, *reach;
  bool inputs_in_order, outputs_in_order;  // the orders are 0, 1, 2, ...
  int activation;
  Storage storage;
  bool reduced;
  const void *x, *weight, *bias, *grad_y, *given_preactivation;
  void *y, *preactivation;
  void *grad_x, *grad_weight, *grad_bias;  // null where not wanted
};

}  // namespace fastcsm
