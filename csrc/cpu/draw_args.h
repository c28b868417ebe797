// From the tensors of a draw to pointers: what all draws have in common.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/launch.h"
#include "common/ops.h"

namespace fastcsm {

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

  DrawArgs args{};

  // x with the variables drawn, and the denoised result or a copy.
  std::tuple<Tensor, Tensor> results() const;

 private:
  Tensor x_, clean_;
  bool denoise_;
  std::vector<std::vector<int64_t>> due_;
};

}  // namespace fastcsm
