#include "common/launch.h"

#include <algorithm>
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

Tensor empty(const Tensor& like, const int64_t* sizes, int64_t axes, ScalarType type) {
  constexpr int64_t kMostAxes = 64;  // as torch has
  if (axes > kMostAxes) fail("a tensor has more than 64 axes");
  int64_t strides[kMostAxes], step = 1;
  for (int64_t i = axes - 1; i >= 0; step *= std::max<int64_t>(sizes[i--], 1)) strides[i] = step;
  int32_t device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(axes, sizes, strides, dtype, device, like.get_device_index(), &made));
  return Tensor(made);
}

}  // namespace

Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return empty(like, shape.begin(), static_cast<int64_t>(shape.size()), type);
}

Tensor new_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return empty(t, sizes.data(), static_cast<int64_t>(sizes.size()), t.scalar_type());
}

const void* checked(const Tensor& t, const char* name, ScalarType type, int64_t count, int64_t layer) {
  const auto wrong = [&](const std::string& what) {
    fail(name + (layer < 0 ? "" : "[" + std::to_string(layer) + "]") + what);
  };
  if (!on_device(t)) wrong(" is on another device than the library's");
  if (t.scalar_type() != type) wrong(" has another dtype than x");
  if (!t.is_contiguous()) wrong(" is not contiguous");
  if (t.numel() != count) wrong(" has shape " + shape_of(t) + ", expected " + std::to_string(count) + " elements");
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
  if (context.dim() < 1) fail("context has shape (), expected (rows..., features)");
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
    head.weight[k] = checked(weights[k], "weights", type, outputs * inputs, k);
    head.bias[k] = checked(biases[k], "biases", type, outputs, k);
    inputs = outputs;
  }
  return head;
}

GradientTensors new_gradients(const Tensor& context, const Tensor& x, const Tensors& weights, const Tensors& biases,
                              bool need_context, bool need_x, bool need_params) {
  const auto like = [](const Tensor& t, bool need) { return need ? new_like(t) : new_tensor(t, {0}); };
  GradientTensors g{like(context, need_context), like(x, need_x), {}, {}, {}};
  g.pointers.context = need_context ? g.context.mutable_data_ptr() : nullptr;
  g.pointers.x = need_x ? g.x.mutable_data_ptr() : nullptr;
  g.pointers.params = need_params;
  for (size_t k = 0; need_params && k < weights.size(); ++k) {
    g.weights.push_back(new_like(weights[k]));
    g.biases.push_back(new_like(biases[k]));
    g.pointers.weight[k] = g.weights[k].mutable_data_ptr();
    g.pointers.bias[k] = g.biases[k].mutable_data_ptr();
  }
  return g;
}

}  // namespace fastcsm
