// Gradients times a number of the device's in one launch, whose blocks end at once where the number is 1.
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <type_traits>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/launch.h"

namespace fastcsm {
namespace {

using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int kMostGradients = 64, kBlock = 512, kAtOnce = 4;

struct RescaleArgs {
  struct {
    void* data;
    int64_t size;
    ScalarType type;
  } gradient[kMostGradients];
  int count;
  const void* upstream;
  bool wide;  // upstream is float64
};

FASTCSM_INLINE Bf16 times(Bf16 x, double factor) { return to_storage<Bf16>(from_storage(x) * float(factor)); }
template <class T>
FASTCSM_INLINE T times(T x, double factor) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  return T(Wide(x) * Wide(factor));
}

template <class T>
FASTCSM_INLINE void scale(void* data, int64_t size, double factor) {
  T* const p = static_cast<T*>(data);
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t begin = int64_t(blockIdx.x) * kBlock + threadIdx.x; begin < size; begin += kAtOnce * stride) {
    T values[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * stride < size) values[k] = p[begin + k * stride];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * stride < size) p[begin + k * stride] = times(values[k], factor);
    }
  }
}

__global__ void __launch_bounds__(kBlock) rescale_kernel(const __grid_constant__ RescaleArgs args) {
  const double factor =
      args.wide ? *static_cast<const double*>(args.upstream) : *static_cast<const float*>(args.upstream);
  if (factor == 1.0) return;
  for (int i = 0; i < args.count; ++i) {
    const auto& g = args.gradient[i];
    if (g.type == ScalarType::Float) scale<float>(g.data, g.size, factor);
    if (g.type == ScalarType::BFloat16) scale<Bf16>(g.data, g.size, factor);
    if (g.type == ScalarType::Half) scale<Half>(g.data, g.size, factor);
    if (g.type == ScalarType::Double) scale<double>(g.data, g.size, factor);
  }
}

}  // namespace

void rescale(Tensors gradients, Tensor upstream, bool) {
  RescaleArgs args{};
  args.wide = upstream.scalar_type() == ScalarType::Double;
  args.upstream = checked(upstream, "upstream", args.wide ? ScalarType::Double : ScalarType::Float, 1);
  if (gradients.size() > kMostGradients) throw std::invalid_argument("fastcsm: gradients has more than 64 entries");
  int64_t blocks = 0;
  for (Tensor& gradient : gradients) {
    const ScalarType type = gradient.scalar_type();
    checked(gradient, "gradients", type, gradient.numel());
    if (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half &&
        type != ScalarType::Double) {
      throw std::invalid_argument("fastcsm: gradients must be float32, bfloat16, float16 or float64");
    }
    args.gradient[args.count++] = {gradient.mutable_data_ptr(), gradient.numel(), type};
    blocks += (gradient.numel() + kAtOnce * kBlock - 1) / (kAtOnce * kBlock);
  }
  const Device device(upstream);
  const int64_t most = 2 * device.multiprocessors();
  if (blocks > 0) device.launch(rescale_kernel, blocks < most ? blocks : most, kBlock, 0, args);
}

}  // namespace fastcsm
