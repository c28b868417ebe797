#include "common/launch.h"

#include <stdexcept>
#include <string>

namespace fastcsm {
namespace {

using torch::headeronly::ScalarType;

std::string shape_of(const Tensor& t) {
  std::string s = "(";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + ")";
}

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("fastcsm: " + message); }

}  // namespace

const void* checked(const Tensor& t, const char* name, ScalarType type, int64_t count) {
  if (!on_device(t)) fail(std::string(name) + " is on another device than the library's");
  if (t.scalar_type() != type) fail(std::string(name) + " has another dtype than x");
  if (!t.is_contiguous()) fail(std::string(name) + " is not contiguous");
  if (t.numel() != count)
    fail(std::string(name) + " has shape " + shape_of(t) + ", expected " + std::to_string(count) + " elements");
  return t.const_data_ptr();
}

Storage storage_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Storage::f32;
    case ScalarType::Double:
      return Storage::f64;
    case ScalarType::BFloat16:
      return Storage::bf16;
    default:
      fail("x has a dtype the kernels do not know, expected float32, float64 or bfloat16");
  }
}

ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 ? ScalarType::Float : t.scalar_type();
}

HeadArgs head_args(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                   const Tensor& frequencies, int64_t activation, bool reduced) {
  HeadArgs head{};
  const ScalarType type = x.scalar_type();
  head.storage = storage_of(x);
  if (context.dim() != 2) fail("context has shape " + shape_of(context) + ", expected (rows, features)");
  head.layers = static_cast<int64_t>(weights.size()) - 1;
  if (head.layers < 1 || head.layers > kMaxLayers || biases.size() != weights.size())
    fail("the head has " + std::to_string(weights.size()) + " weights and " + std::to_string(biases.size()) +
         " biases, expected 2 to 5 of each");
  if (activation < 0 || activation > 6) fail("activation code " + std::to_string(activation) + " is unknown");
  head.activation = static_cast<int>(activation);
  head.reduced = reduced;
  head.frequencies = frequencies.numel();
  head.frequency = checked(frequencies, "frequencies", type, head.frequencies);
  if (weights[0].dim() != 2) fail("weights[0] has shape " + shape_of(weights[0]) + ", expected two dimensions");
  head.context = weights[0].size(1) - head.features();
  if (head.context < 0) fail("weights[0] has fewer columns than the features of x");
  int64_t inputs = weights[0].size(1);
  for (int64_t k = 0; k <= head.layers; ++k) {
    if (weights[k].dim() != 2)
      fail("weights[" + std::to_string(k) + "] has shape " + shape_of(weights[k]) + ", expected two dimensions");
    const int64_t outputs = k == head.layers ? 1 : weights[k].size(0);
    if (k < head.layers) head.width[k] = outputs;
    head.weight[k] = checked(weights[k], ("weights[" + std::to_string(k) + "]").c_str(), type, outputs * inputs);
    head.bias[k] = checked(biases[k], ("biases[" + std::to_string(k) + "]").c_str(), type, outputs);
    inputs = outputs;
  }
  return head;
}

GradientTensors new_gradients(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                              bool need_context, bool need_x, bool need_params) {
  constexpr int64_t kNone[] = {0};
  // Quicker than empty_like, which goes by name through the dispatcher.
  const auto like = [&](const Tensor& t, bool need) {
    return torch::stable::new_empty(t, need ? t.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(kNone, 1));
  };
  GradientTensors g{like(context, need_context), like(x, need_x), {}, {}, {}};
  g.pointers.context = need_context ? g.context.mutable_data_ptr() : nullptr;
  g.pointers.x = need_x ? g.x.mutable_data_ptr() : nullptr;
  g.pointers.params = need_params;
  for (size_t k = 0; need_params && k < weights.size(); ++k) {
    g.weights.push_back(like(weights[k], true));
    g.biases.push_back(like(biases[k], true));
    g.pointers.weight[k] = g.weights[k].mutable_data_ptr();
    g.pointers.bias[k] = g.biases[k].mutable_data_ptr();
  }
  return g;
}

}  // namespace fastcsm
