// Registrations of the GPU's kernels, one line an op, as library_cpu.cpp's. Under FASTCSM_EMULATION the same kernels
// are registered for tensors of the processor, in a library that only tests build and load.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

#if defined(FASTCSM_EMULATION)
#define FASTCSM_LIBRARY STABLE_TORCH_LIBRARY(fastcsm_emulation, m)
#define FASTCSM_KERNELS STABLE_TORCH_LIBRARY_IMPL(fastcsm_emulation, CPU, m)
#define FASTCSM_QUESTIONS STABLE_TORCH_LIBRARY_IMPL(fastcsm_emulation, CompositeExplicitAutograd, m)
bool fastcsm::on_device(const Tensor& t) { return t.is_cpu(); }
#else
#define FASTCSM_LIBRARY STABLE_TORCH_LIBRARY(fastcsm_cuda, m)
#define FASTCSM_KERNELS STABLE_TORCH_LIBRARY_IMPL(fastcsm_cuda, CUDA, m)
#define FASTCSM_QUESTIONS STABLE_TORCH_LIBRARY_IMPL(fastcsm_cuda, CompositeExplicitAutograd, m)
bool fastcsm::on_device(const Tensor& t) { return t.is_cuda(); }
#endif

namespace {

// Bytes of shared memory that a block of the op's kernel needs, and the most it may have: `most`, or on the current
// device where that is 0. For masked_linear the op is a kernel's name, and `inputs` the columns of its tiles.
std::tuple<int64_t, int64_t> shared_bytes(std::string op, bool half, int64_t inputs, int64_t layers, int64_t most) {
  fastcsm::HeadArgs head{};
  head.storage = half ? fastcsm::Storage::bf16 : fastcsm::Storage::f32;
  head.layers = layers;
  head.context = inputs - head.features();
  if (most == 0) most = fastcsm::block_limit();
  if (op == "score_head") return {fastcsm::score_head_bytes(head, most), most};
  if (op == "score_head_backward" || op == "csm_loss") return {fastcsm::csm_loss_bytes(head, most), most};
  if (op == "langevin" || op == "langevin_draw") return {fastcsm::langevin_bytes(head), most};
  if (op.rfind("masked_linear", 0) == 0) return {fastcsm::masked_linear_bytes(op, half, inputs), most};
  if (op == "conditional_density" || op == "conditional_density_nodes") {
    return {fastcsm::conditional_density_bytes(head), most};
  }
  if (op == "probability_flow") return {fastcsm::probability_flow_bytes(head), most};
  throw std::invalid_argument("fastcsm: no op " + op);
}

}  // namespace

FASTCSM_LIBRARY {
  fastcsm::define_ops(m);
  m.def("shared_bytes(str op, bool half, int inputs, int layers, int most=0) -> (int, int)");
}

FASTCSM_KERNELS {
  m.impl("score_head", TORCH_BOX(&fastcsm::score_head));
  m.impl("score_head_backward", TORCH_BOX(&fastcsm::score_head_backward));
  m.impl("csm_loss", TORCH_BOX(&fastcsm::csm_loss));
  m.impl("langevin", TORCH_BOX(&fastcsm::langevin));
  m.impl("langevin_draw", TORCH_BOX(&fastcsm::langevin_draw));
  m.impl("conditional_density", TORCH_BOX(&fastcsm::conditional_density));
  m.impl("conditional_density_nodes", TORCH_BOX(&fastcsm::conditional_density_nodes));
  m.impl("probability_flow", TORCH_BOX(&fastcsm::probability_flow));
  m.impl("masked_linear", TORCH_BOX(&fastcsm::masked_linear));
  m.impl("masked_linear_backward", TORCH_BOX(&fastcsm::masked_linear_backward));
  m.impl("masked_linear_backward_into", TORCH_BOX(&fastcsm::masked_linear_backward_into));
  m.impl("rescale", TORCH_BOX(&fastcsm::rescale));
}

FASTCSM_QUESTIONS { m.impl("shared_bytes", TORCH_BOX(&shared_bytes)); }
