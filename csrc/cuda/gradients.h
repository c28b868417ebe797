// The loss of the rows and the head's gradients, as csm_loss.cu computes them for csm_loss and score_head's backward
// pass.
#pragma once

#include "common/launch.h"
#include "cuda/launch.h"

namespace fastcsm {

// Per row L = alpha s^2 / 2 + beta s' + gamma s; the steps are 0 (one value for all rows) or 1. Where grad_score is
// set, g = grad_score and p = grad_derivative instead, of the storage type, and there is no loss.
struct GradientArgs {
  HeadArgs head;
  int64_t rows;
  const void *context, *x, *grad_score, *grad_derivative;
  const float *alpha, *beta, *gamma;
  int64_t alpha_step, beta_step, gamma_step;
  void *grad_context, *grad_x;  // null where not wanted
  bool params;
  float4* away;                          // (blocks, vectors, threads): sums that registers do not hold
  float* partials;                       // (blocks, slice)
  int64_t offset[2 * (kMaxLayers + 1)];  // in a slice: of every weight, then of every bias
  int64_t slice;                         // the last number of a slice is the loss
};

// Launches the kernel and the sum over its blocks; args' offsets, partials and away are filled in here. loss may be
// null.
void run_gradients(GradientArgs args, const GradientTensors& gradients, float* loss, const Tensor& x,
                   const Device& device);

}  // namespace fastcsm
