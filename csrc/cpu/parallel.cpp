#include "cpu/parallel.h"

#include <pthread.h>
#include <signal.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/interrupt.h"

namespace fastcsm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSpins = 2000;  // as long as a short task takes
// A wait for torch's threads, beyond the tasks they have begun, that tells of another process on their cores; and for
// how many times as long they are then left alone.
constexpr auto kPatience = std::chrono::microseconds(300);
constexpr int kAvoided = 32;
constexpr auto kAskSignals = std::chrono::milliseconds(200);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// The tasks of one call. A thread that comes late finds that none is left; only who holds a task uses the call's
// memory.
class Job {
 public:
  Job(int64_t tasks, int64_t bytes, int64_t team, char* memory, TaskFn fn, void* context)
      : tasks_(tasks), bytes_(bytes), team_(team), memory_(memory), fn_(fn), context_(context), left_(tasks) {}

  bool open() const { return next_ < tasks_ && seats_ < team_; }
  int64_t work();
  void wait();
  bool stopped();

 private:
  const int64_t tasks_, bytes_, team_;
  char* const memory_;
  const TaskFn fn_;
  void* const context_;
  const std::thread::id caller_ = std::this_thread::get_id();
  Clock::time_point asked_ = Clock::now();
  std::atomic<int64_t> next_{0}, seats_{0}, left_;  // left_: tasks that are not done
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable done_;
};

thread_local Job* current = nullptr;  // whose task this thread runs
thread_local int64_t largest = 0;

// Runs tasks until none is left; returns how many it ran.
int64_t Job::work() {
  const int64_t seat = seats_++;
  if (seat >= team_) return 0;
  Job* const before = std::exchange(current, this);
  int64_t ran = 0;
  for (int64_t task = next_++; task < tasks_; task = next_++, ++ran) {
    fn_(context_, task, Arena(memory_ + seat * bytes_));
    if (--left_ == 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
    stopped();
  }
  current = before;
  return ran;
}

// Waits for the tasks that others have begun; throws if the call is to end.
void Job::wait() {
  for (int i = 0; i < kSpins && left_ > 0; ++i) pause();
  std::unique_lock<std::mutex> lock(mutex_);
  while (!done_.wait_for(lock, kAskSignals, [&] { return left_ == 0; })) {
    lock.unlock();
    stopped();
    lock.lock();
  }
  if (stop_) throw Interrupted();
}

bool Job::stopped() {
  if (stop_ || std::this_thread::get_id() != caller_) return stop_;
  const Clock::time_point now = Clock::now();
  if (now - asked_ < kAskSignals) return false;
  asked_ = now;
  if (!interrupted()) return false;
  stop_ = true;
  const int64_t begun = next_.exchange(tasks_);
  if (begun < tasks_) left_ -= tasks_ - begun;
  return true;
}

std::atomic<double> least{kWorth};
// When torch's pool is tried again: never in a child of fork(), where OpenMP would wait for threads it has not.
std::atomic<Clock::time_point> torch_again{Clock::time_point::min()};

// Threads that sleep until there is a job, so that they come first when they wake; they end with the process.
class Pool {
 public:
  void offer(const std::shared_ptr<Job>& job, int64_t helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; threads_ < helpers; ++threads_) std::thread(&Pool::serve, this).detach();
      } catch (const std::system_error&) {  // there may be no more threads: those that are do
      }
      jobs_.push_back(job);
    }
    for (int64_t i = 0; i < helpers; ++i) wake_.notify_one();
  }
  void withdraw(const std::shared_ptr<Job>& job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
  }

 private:
  void serve() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] {
          const auto found = std::find_if(jobs_.begin(), jobs_.end(), [](const auto& j) { return j->open(); });
          if (found != jobs_.end()) job = *found;
          return job != nullptr;
        });
      }
      job->work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Job>> jobs_;
  int64_t threads_ = 0;
};

// A child of fork() has none of its parent's threads, and its locks are as they were.
Pool* pool = new Pool;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  pool = new Pool;
  torch_again = Clock::time_point::max();
});

// Whether new threads, which inherit where the calling one may run, would have a processor each: not where OpenMP binds
// its threads to processors.
bool room_for(int64_t threads) {
#if defined(__linux__)
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) >= threads;
#else
  return true;
#endif
}

// On torch's threads, which spin after its own operations and leave no core to others; it returns when all have come.
void share_with_torch(Job& job, int64_t team) {
  const Clock::time_point start = Clock::now();
  Clock::time_point left = start;
  int64_t ran = 0;
  const std::thread::id caller = std::this_thread::get_id();
  torch::stable::parallel_for(0, team, 1, [&](int64_t, int64_t) {
    const int64_t own = job.work();
    if (std::this_thread::get_id() == caller) left = Clock::now(), ran = own;
  });
  const Clock::duration waited = Clock::now() - left;
  if (waited > kPatience + 2 * (left - start) / (ran + 1)) torch_again = left + kAvoided * waited;
}

void share_with_pool(const std::shared_ptr<Job>& job, int64_t team) {
  pool->offer(job, team - 1);
  job->work();
  pool->withdraw(job);
}

bool avoids_torch(int64_t threads) {
  const Clock::time_point again = torch_again;
  return again == Clock::time_point::max() || (Clock::now() < again && room_for(threads));
}

}  // namespace

int64_t team(double multiply_adds) {
  const double worth = multiply_adds / least.load();
  const int64_t threads = torch::stable::get_num_threads();
  return worth < 2 ? 1 : worth < static_cast<double>(threads) ? static_cast<int64_t>(worth) : threads;
}

void run_tasks(int64_t tasks, int64_t bytes, int64_t team, TaskFn fn, void* context) {
  if (tasks <= 0) return;
  team = std::min(team, tasks);
  largest = std::max(largest, team);
  const Scratch memory(team * bytes);
  const auto job = std::make_shared<Job>(tasks, bytes, team, static_cast<char*>(memory.p), fn, context);
  if (team == 1) {
    job->work();
  } else if (avoids_torch(team)) {
    share_with_pool(job, team);
  } else {
    share_with_torch(*job, team);
  }
  job->wait();
}

bool stopped() { return current != nullptr && current->stopped(); }

int64_t largest_team() { return std::exchange(largest, 0); }

void set_sharing(double worth, bool own) {
  least = worth;
  torch_again = own ? Clock::time_point::max() : Clock::time_point::min();
}

namespace {

constexpr int kKeptBlocks = 4;
constexpr int64_t kKeptBytes = 512 << 10;  // the most of a block that is kept

struct Block {
  void* p = nullptr;
  int64_t bytes = 0;
};
struct Kept {
  Block blocks[kKeptBlocks];
  ~Kept() {
    for (Block& block : blocks) free(block.p);
  }
};
thread_local Kept kept;

}  // namespace

Scratch::Scratch(int64_t wanted) : p(nullptr), bytes((wanted + 64) / 64 * 64) {
  for (Block& block : kept.blocks) {
    if (block.bytes < bytes) continue;
    p = std::exchange(block.p, nullptr), bytes = std::exchange(block.bytes, 0);
    return;
  }
  p = aligned_alloc(64, bytes);
  if (p == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() {
  Block* smallest = kept.blocks;
  for (Block& block : kept.blocks)
    if (block.bytes < smallest->bytes) smallest = &block;
  if (bytes <= kKeptBytes && bytes > smallest->bytes) {
    std::swap(p, smallest->p);
    smallest->bytes = bytes;
  }
  free(p);
}

}  // namespace fastcsm
