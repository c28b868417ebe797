// How kernels are launched: on the device and the current stream of a tensor, with as much shared memory as asked for.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

#include "cuda/device.h"

namespace fastcsm {

using torch::stable::Tensor;

// Most bytes of shared memory a block may have on the current device.
int block_limit();
// Throws a sentence: these are more.
[[noreturn]] void does_not_fit(int64_t bytes);

// Warps of a block, at most `most`, whose bytes(warps) of shared memory it may have; throws if one is too many.
template <class Bytes>
int warps_that_fit(int most, const Bytes& bytes) {
  while (most > 1 && bytes(most) > block_limit()) --most;
  if (bytes(most) > block_limit()) does_not_fit(bytes(most));
  return most;
}

// A device as launches see it. Making one makes it the current device until it is destroyed.
class Device {
 public:
  explicit Device(const Tensor& tensor);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int multiprocessors() const { return multiprocessors_; }
  // Runs kernel(args) in blocks of threads. Errors become exceptions.
  template <class Args>
  void launch(void (*kernel)(Args), int64_t blocks, int threads, int bytes, const Args& args) const {
#if defined(__CUDACC__)
    if (bytes > kDefaultBytes) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    }
    kernel<<<dim3(unsigned(blocks)), dim3(threads), bytes, static_cast<cudaStream_t>(stream_)>>>(args);
    check(cudaGetLastError());
#else
    struct Call {
      void (*kernel)(Args);
      const Args& args;
    } call{kernel, args};
    emulation::run(
        dim3(unsigned(blocks)), dim3(threads), bytes,
        [](void* self) { static_cast<Call*>(self)->kernel(static_cast<Call*>(self)->args); }, &call);
#endif
  }

 private:
  static constexpr int kDefaultBytes = 48 << 10;
  static void check(int error);

  void* guard_ = nullptr;
  void* stream_ = nullptr;
  int multiprocessors_;
};

// Calls function with the precision of products as a constant.
template <Precision P>
struct PrecisionConstant {
  static constexpr Precision value = P;
};
template <class Function>
void with_precision(Storage storage, bool reduced, const Function& function) {
  if (storage == Storage::bf16) {
    function(PrecisionConstant<Precision::bf16>());
  } else if (storage == Storage::f32 && reduced) {
    function(PrecisionConstant<Precision::tf32>());
  } else if (storage == Storage::f32) {
    function(PrecisionConstant<Precision::exact>());
  } else {
    throw std::invalid_argument("fastcsm: x is float64, expected float32 or bfloat16");
  }
}
template <class Function>
void with_precision(const HeadArgs& head, const Function& function) {
  with_precision(head.storage, head.reduced, function);
}

}  // namespace fastcsm
