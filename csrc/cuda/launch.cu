// The device of a launch, through libtorch's stable interface: nothing of libtorch_cuda is linked, so that the library
// builds against any torch; the current stream is asked of it when it is there.
#include "cuda/launch.h"

#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

namespace fastcsm {

#if defined(__CUDACC__)
namespace {

void expect(bool holds, const std::string& sentence) {
  if (!holds) throw std::runtime_error("fastcsm: " + sentence);
}

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* function = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  expect(function, "torch has no CUDA, or its CUDA library is not loaded");
  return reinterpret_cast<CurrentStream>(function);
}

}  // namespace

Device::Device(const Tensor& tensor) {
  static const CurrentStream current_stream = find_current_stream();
  const int32_t index = tensor.get_device_index();
  DeviceGuardHandle guard = nullptr;
  expect(aoti_torch_create_device_guard(index, &guard) == AOTI_TORCH_SUCCESS, "the tensor's device cannot be used");
  guard_ = guard;
  expect(current_stream(index, &stream_) == AOTI_TORCH_SUCCESS, "torch has no current stream");
  check(cudaSetDevice(index));
  check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index));
}

Device::~Device() { aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_)); }

void Device::check(int error) { expect(error == cudaSuccess, cudaGetErrorString(static_cast<cudaError_t>(error))); }

int block_limit() {
  int device = 0, bytes = 0;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
  return found ? bytes : 0;
}
#else
// Three blocks, so that each has several tiles even of few rows; the shared memory of sm_90.
Device::Device(const Tensor&) : multiprocessors_(3) {}
Device::~Device() = default;
int block_limit() { return 227 << 10; }
#endif

void does_not_fit(int64_t bytes) {
  throw std::invalid_argument("fastcsm: the head needs " + std::to_string(bytes >> 10) +
                              " KiB of shared memory, a block has " + std::to_string(block_limit() >> 10) +
                              "; choose the backend triton");
}

}  // namespace fastcsm
