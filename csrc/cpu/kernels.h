// What each kernel's launcher hands to the code compiled for the chosen instruction set: pointers into contiguous
// tensors.
#pragma once

#include "common/head.h"

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

}  // namespace fastcsm
