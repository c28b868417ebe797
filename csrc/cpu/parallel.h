// Tasks on several threads. Those of torch's pool come at once, but a call on them ends when all have come, also one
// that another process keeps from its core for some milliseconds. Where that is seen to happen, threads of the
// library's own take their place: they sleep meanwhile, and nobody waits for one that has not begun.
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

// Owns the memory behind an Arena. A thread keeps some of what its last calls had, as small calls would spend more time
// with the heap than with their rows.
struct Scratch {
  void* p;
  int64_t bytes;
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// How many threads work of so many multiply-adds is for: at most torch's number, and one where it is too small to
// share. Launchers count what is sure to be done; a number moved through memory counts as kMoved.
int64_t team(double multiply_adds);
constexpr double kMoved = 16;

// Runs fn(context, task, arena) for every task in [0, tasks), handed out one by one in order to at most `team` threads,
// of which the calling one is the first. arena has `bytes` of the thread's own, with what an earlier task left there. A
// task's result must not depend on which thread runs it, and fn must not throw. Throws Interrupted where a signal's
// handler raises: results are then unfinished.
using TaskFn = void (*)(void* context, int64_t task, Arena arena);
void run_tasks(int64_t tasks, int64_t bytes, int64_t team, TaskFn fn, void* context);

// Whether the task at hand may stop, since the call is to end: asked inside tasks that can be long.
bool stopped();

// For tests: the most threads that tasks of the calling thread were for, since this was asked last; how many
// multiply-adds are worth a thread, and whether it is one of the library's own.
int64_t largest_team();
void set_sharing(double worth, bool own);
constexpr double kWorth = 8 << 20;  // a few tenths of a millisecond

}  // namespace fastcsm
