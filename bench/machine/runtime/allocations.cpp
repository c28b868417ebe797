// What a launcher allocates while kernels run on the machine: address and bytes of every live allocation, so that
// accesses are checked against its exact bounds. New memory is filled with 0xff, which is NaN in every floating type.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kAlignment = 256;  // that of CUDA's allocations
std::mutex mutex;
std::map<void*, size_t> live;

void release(void* p) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    live.erase(p);
  }
  std::free(p);
}

class Recorder final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    const size_t room = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* p = std::aligned_alloc(kAlignment, room);
    TORCH_CHECK(p, "fastcsm: no memory for ", bytes, " bytes");
    std::memset(p, 0xff, room);
    const std::lock_guard<std::mutex> lock(mutex);
    live[p] = bytes;
    return {p, p, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Recorder recorder;
c10::Allocator* usual = nullptr;

}  // namespace

#define FASTCSM_VISIBLE __attribute__((visibility("default")))

// From here to the end torch allocates for the processor with the recorder, whose list begins empty.
extern "C" FASTCSM_VISIBLE void machine_allocations_begin() {
  const std::lock_guard<std::mutex> lock(mutex);
  live.clear();
  usual = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&recorder);
}
extern "C" FASTCSM_VISIBLE void machine_allocations_end() { c10::SetCPUAllocator(usual); }

// Writes address and bytes of at most `most` live allocations; returns how many there are.
extern "C" FASTCSM_VISIBLE int64_t machine_allocations(uint64_t* pairs, int64_t most) {
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t n = 0;
  for (const auto& [p, bytes] : live) {
    if (n++ < most) {
      *pairs++ = reinterpret_cast<uint64_t>(p);
      *pairs++ = bytes;
    }
  }
  return int64_t(live.size());
}
