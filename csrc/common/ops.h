// The ops, with one signature and one schema in every library; a library defines, in the file of its name, and
// registers those it has.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

namespace fastcsm {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The second result is empty without derivative.
std::tuple<Tensor, Tensor> score_head(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                      int64_t activation, bool derivative, bool reduced);

std::tuple<Tensor, Tensor, Tensors, Tensors> score_head_backward(Tensor grad_score, Tensor grad_derivative,
                                                                 Tensor context, Tensor x, Tensors weights,
                                                                 Tensors biases, Tensor frequencies, int64_t activation,
                                                                 bool need_context, bool need_x, bool need_params,
                                                                 bool reduced);

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors> csm_loss(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                              Tensor frequencies, int64_t activation, Tensor alpha,
                                                              Tensor beta, Tensor gamma, bool need_context, bool need_x,
                                                              bool need_params, bool reduced);

Tensor langevin(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
                std::vector<double> step_sizes, std::vector<double> score_scales, std::vector<double> stage_features,
                int64_t steps, int64_t seed, Tensor samples, Tensor dimensions, int64_t first_step, double squash,
                bool reduced);

std::tuple<Tensor, Tensor> langevin_draw(Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                         int64_t activation, Tensors made_weights, Tensors made_biases, Tensors degrees,
                                         Tensor order, int64_t made_activation, bool residual,
                                         std::vector<double> step_sizes, std::vector<double> score_scales,
                                         std::vector<double> stage_features, int64_t steps, int64_t seed,
                                         Tensor samples, int64_t first, int64_t last, double denoise, bool reduced);

// The point or quantile, log-density, log-normaliser, cdf, error, and the probabilities beyond both ends.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conditional_density(
    Tensor context, Tensor point, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
    double score_scale, std::vector<double> stage_features, double low, double high, double tolerance, int64_t panels,
    double squash, bool inverse, bool reduced);

// Of every row the nodes t, the derivatives of its log-density in the scores there, how many there are, and the score
// at its point.
std::tuple<Tensor, Tensor, Tensor, Tensor> conditional_density_nodes(Tensor context, Tensor point, Tensors weights,
                                                                     Tensors biases, Tensor frequencies,
                                                                     int64_t activation, double score_scale,
                                                                     std::vector<double> stage_features, double low,
                                                                     double high, double tolerance, int64_t panels,
                                                                     double squash, bool reduced);

std::tuple<Tensor, Tensor> conditional_density_draw(Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                                    int64_t activation, Tensors made_weights, Tensors made_biases,
                                                    Tensors degrees, Tensor order, int64_t made_activation,
                                                    bool residual, std::vector<double> sigmas, double low, double high,
                                                    double tolerance, double flow_tolerance, int64_t panels,
                                                    int64_t seed, Tensor samples, int64_t first, int64_t last,
                                                    double denoise, bool reduced);

std::tuple<Tensor, Tensor, Tensor> probability_flow(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                    Tensor frequencies, int64_t activation, double sigma_from,
                                                    double sigma_to, double tolerance, bool change, double squash,
                                                    bool reduced);

std::tuple<Tensor, Tensor> masked_linear(Tensor x, Tensor weight, Tensor bias, Tensor in_degrees, Tensor out_degrees,
                                         int64_t activation, bool reduced);

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight,
                                                          Tensor in_degrees, Tensor out_degrees, int64_t activation,
                                                          bool need_x, bool need_weight, bool need_bias, bool reduced);

// The same with the gradients of weight and bias written where the caller wants them; an empty tensor: not wanted.
Tensor masked_linear_backward_into(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, Tensor in_degrees,
                                   Tensor out_degrees, int64_t activation, bool need_x, Tensor grad_weight,
                                   Tensor grad_bias, bool reduced);

// Contiguous gradients of any floating dtypes, each times the number in upstream.
void rescale(Tensors gradients, Tensor upstream, bool reduced);

#define FASTCSM_HEAD "Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation"
#define FASTCSM_NEED "bool need_context, bool need_x, bool need_params"
#define FASTCSM_STAIRS "Tensor in_degrees, Tensor out_degrees, int activation, bool reduced"
#define FASTCSM_STAIRS_BACKWARD \
  "Tensor in_degrees, Tensor out_degrees, int activation, bool need_x, bool need_weight, bool need_bias, bool reduced"
#define FASTCSM_DENSITY                                                                                   \
  "Tensor context, Tensor point, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation, " \
  "float score_scale, float[] stage_features, float low, float high, float tolerance, int panels, float squash"
#define FASTCSM_DRAW                                                                                         \
  "Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation, Tensor[] made_weights, " \
  "Tensor[] made_biases, Tensor[] degrees, Tensor order, int made_activation, bool residual"
#define FASTCSM_DRAWN "int seed, Tensor samples, int first, int last, float denoise, bool reduced) -> (Tensor, Tensor"
#define FASTCSM_GRADIENTS "Tensor, Tensor, Tensor[], Tensor[]"

template <class Library>
void define_ops(Library& m) {
  m.def("score_head(" FASTCSM_HEAD ", bool derivative, bool reduced) -> (Tensor, Tensor)");
  m.def("score_head_backward(Tensor grad_score, Tensor grad_derivative, " FASTCSM_HEAD ", " FASTCSM_NEED
        ", bool reduced) -> (" FASTCSM_GRADIENTS ")");
  m.def("csm_loss(" FASTCSM_HEAD ", Tensor alpha, Tensor beta, Tensor gamma, " FASTCSM_NEED
        ", bool reduced) -> (Tensor, " FASTCSM_GRADIENTS ")");
  m.def("langevin(" FASTCSM_HEAD
        ", float[] step_sizes, float[] score_scales, float[] stage_features, int steps, int seed, Tensor samples, "
        "Tensor dimensions, int first_step, float squash, bool reduced) -> Tensor");
  m.def("langevin_draw(" FASTCSM_DRAW
        ", float[] step_sizes, float[] score_scales, float[] stage_features, int steps, " FASTCSM_DRAWN ")");
  m.def("conditional_density_draw(" FASTCSM_DRAW
        ", float[] sigmas, float low, float high, float tolerance, float flow_tolerance, int panels, " FASTCSM_DRAWN
        ")");
  m.def("conditional_density(" FASTCSM_DENSITY
        ", bool inverse, bool reduced) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("conditional_density_nodes(" FASTCSM_DENSITY ", bool reduced) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("probability_flow(" FASTCSM_HEAD
        ", float sigma_from, float sigma_to, float tolerance, bool change, float squash, bool reduced) -> (Tensor, "
        "Tensor, Tensor)");
  m.def("masked_linear(Tensor x, Tensor weight, Tensor bias, " FASTCSM_STAIRS ") -> (Tensor, Tensor)");
  m.def("masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, " FASTCSM_STAIRS_BACKWARD
        ") -> (Tensor, Tensor, Tensor)");
  m.def(
      "masked_linear_backward_into(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, Tensor in_degrees, "
      "Tensor out_degrees, int activation, bool need_x, Tensor(a!) grad_weight, Tensor(b!) grad_bias, bool reduced) -> "
      "Tensor");
  m.def("rescale(Tensor(a!)[] gradients, Tensor upstream, bool reduced) -> ()");
}

#undef FASTCSM_HEAD
#undef FASTCSM_NEED
#undef FASTCSM_STAIRS
#undef FASTCSM_STAIRS_BACKWARD
#undef FASTCSM_DENSITY
#undef FASTCSM_DRAW
#undef FASTCSM_DRAWN
#undef FASTCSM_GRADIENTS

}  // namespace fastcsm
