// A stand-in for the CUDA runtime, under which the shipped objects of csrc/cuda/ run their own launch code on a host
// without a GPU: every launch goes to a callback with the kernel's name and arguments. What a driver refuses is
// refused: more shared memory than was asked for, empty grids, too many threads.
//
// The functions are hidden, so that only this library's objects see them.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>

namespace {

// A launch: grid and block (x, y, z), dynamic shared bytes, a pointer to each argument. Returns 0 or an error.
using Launch = int (*)(const char* name, const unsigned* grid, const unsigned* block, size_t bytes, void** args);

struct Kernel {
  std::string name;
  int most_bytes = 48 << 10;
};
struct Call {
  dim3 grid, block;
  size_t bytes;
  void* stream;
};

Launch on_launch = nullptr;
int shared_limit = 0, multiprocessors = 0;
std::string sentence;
thread_local Call call;
thread_local cudaError_t last_error = cudaSuccess;

std::unordered_map<const void*, Kernel>& kernels() {
  static std::unordered_map<const void*, Kernel> found;
  return found;
}

bool can_run(const Call& c) {
  const auto in = [](unsigned v, unsigned most) { return v > 0 && v <= most; };
  return in(c.grid.x, 0x7fffffff) && in(c.grid.y, 65535) && in(c.grid.z, 65535) && in(c.block.x, 1024) &&
         in(c.block.y, 1024) && in(c.block.z, 64) && c.block.x * c.block.y * c.block.z <= 1024;
}

cudaError_t launch(const Kernel& kernel, const Call& c, void** args) {
  if (!can_run(c)) return cudaErrorInvalidConfiguration;
  if (c.bytes > size_t(kernel.most_bytes)) return cudaErrorInvalidValue;
  const unsigned grid[] = {c.grid.x, c.grid.y, c.grid.z}, block[] = {c.block.x, c.block.y, c.block.z};
  return on_launch ? cudaError_t(on_launch(kernel.name.c_str(), grid, block, c.bytes, args)) : cudaErrorNoDevice;
}

}  // namespace

#define FASTCSM_VISIBLE __attribute__((visibility("default")))

// The device: who runs launches, the most bytes of shared memory of a block, and how many multiprocessors.
extern "C" FASTCSM_VISIBLE void machine_device(Launch callback, int limit, int processors) {
  on_launch = callback;
  shared_limit = limit;
  multiprocessors = processors;
}

// What cudaErrorLaunchFailure means from now on.
extern "C" FASTCSM_VISIBLE void machine_fault(const char* why) { sentence = why; }

extern "C" {

// nvcc's registrations, and the launches it makes of <<<>>>: up to CUDA 12 by cudaLaunchKernel, since by handle.
void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernels()[stub].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t bytes, struct CUstream_st* stream) {
  call = {grid, block, bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* bytes, void* stream) {
  *grid = call.grid;
  *block = call.block;
  *bytes = call.bytes;
  std::memcpy(stream, &call.stream, sizeof call.stream);
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(const void** handle, const void* stub) {
  *handle = stub;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** args, size_t bytes, cudaStream_t stream) {
  const auto found = kernels().find(stub);
  return last_error = found == kernels().end() ? cudaErrorInvalidDeviceFunction
                                               : launch(found->second, {grid, block, bytes, stream}, args);
}
cudaError_t __cudaLaunchKernel(const void* handle, dim3 grid, dim3 block, void** args, size_t bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(handle, grid, block, args, bytes, stream);
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  const auto found = kernels().find(stub);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > shared_limit) {
    return cudaErrorInvalidValue;
  }
  found->second.most_bytes = value;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return sentence.c_str();
    case cudaErrorInvalidConfiguration:
      return "the machine: invalid configuration of a launch";
    case cudaErrorInvalidValue:
      return "the machine: more shared memory than a block may have, or was asked for";
    case cudaErrorInvalidDeviceFunction:
      return "the machine: no kernel was registered for this function";
    default:
      return "the machine: no device was described";
  }
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMultiProcessorCount) {
    *value = multiprocessors;
  } else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
    *value = shared_limit;
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

// What csrc/cuda/launch.cu asks torch for: tensors of the host have no device to guard and no stream.
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) { return 0; }
int32_t no_current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
void* dlopen(const char*, int) noexcept { return &on_launch; }
void* dlsym(void*, const char*) noexcept { return reinterpret_cast<void*>(&no_current_stream); }

}  // extern "C"
