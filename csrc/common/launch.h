// From tensors to raw pointers. Shapes were checked in fastcsm/functional.py; what is checked again here is what would
// otherwise read memory that is not there.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/head.h"

namespace fastcsm {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// Describes the head; throws a sentence naming what does not fit.
HeadArgs head_args(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                   const Tensor& frequencies, int64_t activation, bool reduced);

// The storage type of a tensor; throws if the kernels do not know its dtype.
Storage storage_of(const Tensor& x);

// Whether a tensor lies where this library's kernels run; each library defines it.
bool on_device(const Tensor& t);

// Contiguous, on the device, of the given type and number of elements; throws otherwise.
const void* checked(const Tensor& t, const char* name, torch::headeronly::ScalarType type, int64_t count);

// The type arithmetic is done in: float for bfloat16, else the storage type.
torch::headeronly::ScalarType compute_type(const Tensor& t);

struct GradientTensors {
  Tensor context, x;
  Tensors weights, biases;
  HeadGradients pointers;
};
// Outputs for the gradients wanted; the others have no elements.
GradientTensors new_gradients(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                              bool need_context, bool need_x, bool need_params);

}  // namespace fastcsm
