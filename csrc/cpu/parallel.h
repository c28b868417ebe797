// Tasks on torch's own thread pool. A task's result must not depend on which worker runs it.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace fastcsm {

// Cache-line aligned scratch memory; bytes() is known before the memory is.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* p = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Owns the memory behind an Arena.
struct Scratch {
  void* p;
  explicit Scratch(int64_t bytes);
  ~Scratch() { free(p); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// Runs fn(context, task, arena) for every task in [0, tasks), handed out one by one in order to at most workers()
// threads; arena has `bytes` of the thread's own, with what an earlier task left there.
using TaskFn = void (*)(void* context, int64_t task, Arena arena);
int64_t workers();
void run_tasks(int64_t tasks, int64_t bytes, TaskFn fn, void* context);

}  // namespace fastcsm
