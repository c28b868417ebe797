// From tensors to raw pointers. Shapes were checked in fastcsm/functional.py; what is checked again here is what would
// otherwise read memory that is not there.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <type_traits>
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

// Contiguous, on the device, of the given type and number of elements; throws otherwise. The name is one for all layers
// if `layer` is one.
const void* checked(const Tensor& t, const char* name, torch::headeronly::ScalarType type, int64_t count,
                    int64_t layer = -1);

// The type arithmetic is done in: float for bfloat16, else the storage type.
torch::headeronly::ScalarType compute_type(const Tensor& t);

// An uninitialised tensor on the device of another one, made without the dispatcher, which the stable interface would
// ask by name: a small call makes eight.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, torch::headeronly::ScalarType type);
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape) {
  return new_tensor(like, shape, like.scalar_type());
}
// Of the shape and type of one that is contiguous.
Tensor new_like(const Tensor& t);

// The head, the rows, and where their contexts (N, C) and x (N) lie.
template <class Args>
void set_rows(Args& a, const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
              const Tensor& frequencies, int64_t activation, bool reduced) {
  a.head = head_args(context, x, weights, biases, frequencies, activation, reduced);
  a.rows = x.numel();
  a.context = checked(context, "context", x.scalar_type(), a.rows * a.head.context);
  a.x = checked(x, "x", x.scalar_type(), a.rows);
}

// The coefficients of the loss: one a row, or one for all, whose step is 0.
template <class Args>
void set_coefficients(Args& a, const Tensor& x, const Tensor& alpha, const Tensor& beta, const Tensor& gamma) {
  const auto set = [&](auto& pointer, int64_t& step, const Tensor& t, const char* name) {
    step = t.numel() == 1 ? 0 : 1;
    const void* p = checked(t, name, compute_type(x), step == 0 ? 1 : a.rows);
    pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(p);
  };
  set(a.alpha, a.alpha_step, alpha, "alpha");
  set(a.beta, a.beta_step, beta, "beta");
  set(a.gamma, a.gamma_step, gamma, "gamma");
}

struct GradientTensors {
  Tensor context, x;
  Tensors weights, biases;
  HeadGradients pointers;
};
// Outputs for the gradients wanted; the others have no elements.
GradientTensors new_gradients(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                              bool need_context, bool need_x, bool need_params);

}  // namespace fastcsm
