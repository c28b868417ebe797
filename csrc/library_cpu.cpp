// Registrations of the processor's kernels, one line an op. Built against libtorch's stable ABI: one binary for every
// torch >= 2.11. The Python side, fastcsm/ops/, chooses between backends; nothing else calls these.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/ops.h"

namespace {

std::string isa() { return fastcsm::isa_name(); }
void set_isa(std::string name) { fastcsm::set_isa(name); }
std::vector<std::string> isas() { return fastcsm::available_isas(); }

}  // namespace

#define FASTCSM_HEAD "Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation"
#define FASTCSM_NEED "bool need_context, bool need_x, bool need_params"
#define FASTCSM_STAIRS "Tensor in_degrees, Tensor out_degrees, int activation, bool reduced"
#define FASTCSM_STAIRS_BACKWARD \
  "Tensor in_degrees, Tensor out_degrees, int activation, bool need_x, bool need_weight, bool need_bias, bool reduced"
#define FASTCSM_DENSITY                                                                                   \
  "Tensor context, Tensor point, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation, " \
  "float score_scale, float[] stage_features, float low, float high, float tolerance, int panels"
#define FASTCSM_DRAW                                                                                         \
  "Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies, int activation, Tensor[] made_weights, " \
  "Tensor[] made_biases, Tensor[] degrees, Tensor order, int made_activation, bool residual"
#define FASTCSM_DRAWN "int seed, Tensor samples, int first, int last, float denoise, bool reduced) -> (Tensor, Tensor"
#define FASTCSM_GRADIENTS "Tensor, Tensor, Tensor[], Tensor[]"

STABLE_TORCH_LIBRARY(fastcsm_cpu, m) {
  m.def("score_head(" FASTCSM_HEAD ", bool reduced) -> (Tensor, Tensor)");
  m.def("score_head_backward(Tensor grad_score, Tensor grad_derivative, " FASTCSM_HEAD ", " FASTCSM_NEED
        ", bool reduced) -> (" FASTCSM_GRADIENTS ")");
  m.def("csm_loss(" FASTCSM_HEAD ", Tensor alpha, Tensor beta, Tensor gamma, " FASTCSM_NEED
        ", bool reduced) -> (Tensor, " FASTCSM_GRADIENTS ")");
  m.def("langevin(" FASTCSM_HEAD
        ", float[] step_sizes, float[] score_scales, float[] stage_features, int steps, int seed, Tensor samples, "
        "Tensor dimensions, int first_step, bool reduced) -> Tensor");
  m.def("langevin_draw(" FASTCSM_DRAW
        ", float[] step_sizes, float[] score_scales, float[] stage_features, int steps, " FASTCSM_DRAWN ")");
  m.def("conditional_density_draw(" FASTCSM_DRAW
        ", float[] sigmas, float low, float high, float tolerance, float flow_tolerance, int panels, " FASTCSM_DRAWN
        ")");
  m.def("conditional_density(" FASTCSM_DENSITY
        ", bool inverse, bool reduced) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("conditional_density_nodes(" FASTCSM_DENSITY ", bool reduced) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("probability_flow(" FASTCSM_HEAD
        ", float sigma_from, float sigma_to, float tolerance, bool change, bool reduced) -> (Tensor, Tensor, Tensor)");
  m.def("masked_linear(Tensor x, Tensor weight, Tensor bias, " FASTCSM_STAIRS ") -> (Tensor, Tensor)");
  m.def("masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, " FASTCSM_STAIRS_BACKWARD
        ") -> (Tensor, Tensor, Tensor)");
  m.def(
      "masked_linear_backward_into(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, Tensor in_degrees, "
      "Tensor out_degrees, int activation, bool need_x, Tensor(a!) grad_weight, Tensor(b!) grad_bias, bool reduced) -> "
      "Tensor");
  m.def("isa() -> str");
  m.def("isas() -> str[]");
  m.def("set_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastcsm_cpu, CPU, m) {
  m.impl("score_head", TORCH_BOX(&fastcsm::score_head));
  m.impl("score_head_backward", TORCH_BOX(&fastcsm::score_head_backward));
  m.impl("csm_loss", TORCH_BOX(&fastcsm::csm_loss));
  m.impl("langevin", TORCH_BOX(&fastcsm::langevin));
  m.impl("langevin_draw", TORCH_BOX(&fastcsm::langevin_draw));
  m.impl("conditional_density", TORCH_BOX(&fastcsm::conditional_density));
  m.impl("conditional_density_draw", TORCH_BOX(&fastcsm::conditional_density_draw));
  m.impl("conditional_density_nodes", TORCH_BOX(&fastcsm::conditional_density_nodes));
  m.impl("probability_flow", TORCH_BOX(&fastcsm::probability_flow));
  m.impl("masked_linear", TORCH_BOX(&fastcsm::masked_linear));
  m.impl("masked_linear_backward", TORCH_BOX(&fastcsm::masked_linear_backward));
  m.impl("masked_linear_backward_into", TORCH_BOX(&fastcsm::masked_linear_backward_into));
}

STABLE_TORCH_LIBRARY_IMPL(fastcsm_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("set_isa", TORCH_BOX(&set_isa));
}
