// Registrations of the processor's kernels, one line an op. Built against libtorch's stable ABI: one binary for every
// torch >= 2.11. The Python side, fastcsm/ops/, chooses between backends; nothing else calls these.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "common/launch.h"
#include "common/ops.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace {

std::string isa() { return fastcsm::isa_name(); }
void set_isa(std::string name) { fastcsm::set_isa(name); }
std::vector<std::string> isas() { return fastcsm::available_isas(); }

}  // namespace

bool fastcsm::on_device(const Tensor& t) { return t.is_cpu(); }

STABLE_TORCH_LIBRARY(fastcsm_cpu, m) {
  fastcsm::define_ops(m);
  m.def("isa() -> str");
  m.def("isas() -> str[]");
  m.def("set_isa(str name) -> ()");
  m.def("peak(str precision, int rounds) -> float");
  m.def("largest_team() -> int");
  m.def("set_sharing(float worth, bool own) -> ()");
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
  m.impl("peak", TORCH_BOX(&fastcsm::peak));
  m.impl("largest_team", TORCH_BOX(&fastcsm::largest_team));
  m.impl("set_sharing", TORCH_BOX(&fastcsm::set_sharing));
}
