#include "cpu/parallel.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <new>

namespace fastcsm {

int64_t workers() { return torch::stable::get_num_threads(); }

void run_tasks(int64_t tasks, int64_t bytes, TaskFn fn, void* context) {
  const int64_t team = tasks < workers() ? tasks : workers();
  if (team <= 0) return;
  const Scratch memory(team * bytes);
  char* base = static_cast<char*>(memory.p);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, team, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1))
        fn(context, task, Arena(base + worker * bytes));
    }
  });
}

Scratch::Scratch(int64_t bytes) : p(aligned_alloc(64, (bytes + 64) / 64 * 64)) {
  if (p == nullptr) throw std::bad_alloc();
}

}  // namespace fastcsm
