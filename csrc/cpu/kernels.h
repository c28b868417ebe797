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

struct PeakArgs {
  Storage precision;  // bf16: products that may round float32 operands to it
  int64_t rounds;
  double operations;  // done
};

}  // namespace fastcsm
