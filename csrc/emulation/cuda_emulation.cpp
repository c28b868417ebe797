// The scheduler of emulated threads and the record of their accesses to memory; compiled without sanitizers.
#include "emulation/cuda_emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

#include "sums.h"  // of bench/machine/

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10, kSlotBytes = 64;

enum class State { ready, at_warp, at_block, done };

struct Copy {
  char *to, value[16];
  size_t bytes;
  uint32_t group;
};

struct Fiber {
  void* jump[5];  // of __builtin_setjmp
  ucontext_t start;
  char* stack = nullptr;
  bool started;
  State state;
  Place at;
  std::vector<Copy> copies;  // on their way, the oldest first
  uint32_t groups;           // of copies that were ended
};

struct Warp {
  int arrived;
  int turn;         // which of the two sets of slots is being filled
  uint32_t fences;  // barriers of this warp so far
  bool multiplied;  // what the lanes exchanged last, to sums
  float sums[16][8];
  char slots[2][32 * kSlotBytes];
};

// What is known of one cell: kCell bytes, no fewer than the narrowest element that kernels have. Threads count from 1,
// 0 is nobody; readers since the block's last barrier may also be several of one warp, kOfWarp + its number, or of
// several warps, kMany.
constexpr uint16_t kOfWarp = 0x8000, kMany = 0xffff;
constexpr size_t kCell = 2;
struct Cell {
  bool allotted, written;
  bool read_before;  // by an earlier block
  bool coming;       // an asynchronous copy is on its way
  uint16_t writer, reader;
  uint32_t write_block, write_warp, read_block, read_warp;  // epochs: barriers of the block and of the warp before it
};
constexpr uintptr_t kPage = 512;  // cells

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Cell> cells;
  std::vector<std::pair<const void*, size_t>> arrays;  // that were allotted
  char* memory = nullptr;
  size_t size = 0;
  int threads = 0, current = 0, arrived = 0, finished = 0;
  uint32_t barriers = 0, first = 0;  // of the launch so far, one more at each block's begin, which is the first
  std::unordered_map<uintptr_t, std::vector<Cell>> pages;  // of memory other than shared, by this launch
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  void* home[5];
  bool running = false;
} block;

const char* file_name(const Place& at) {
  const char* slash = std::strrchr(at.file_name(), '/');
  return slash ? slash + 1 : at.file_name();
}

[[noreturn]] void report() {
  std::fprintf(stderr, " (block %u, thread %d)\n", blockIdx.x, block.current);
  std::fflush(stderr);
  std::abort();
}

[[noreturn]] void report_access(const char* what, const void* p, size_t bytes) {
  const size_t offset = static_cast<const char*>(p) - block.memory;
  std::fprintf(stderr, "emulation: %s: %zu bytes at ", what, bytes);
  if (offset < block.size) {
    std::fprintf(stderr, "byte %zu of shared memory", offset);
  } else {
    std::fprintf(stderr, "%p of device memory", p);
  }
  report();
}

bool same(const Place& a, const Place& b) {
  const bool file = a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0;
  return file && a.line() == b.line() && a.column() == b.column();
}

[[noreturn]] void divergence() {
  std::fprintf(stderr, "emulation: barrier divergence:");
  int shown = 0;
  for (int i = 0; i < block.threads && shown < 4; ++i) {
    const Fiber& f = block.fibers[i];
    const Fiber* before = i ? &block.fibers[i - 1] : nullptr;
    if (before && before->state == f.state && (f.state == State::done || same(before->at, f.at))) continue;
    const char* what = f.state == State::done      ? "has returned"
                       : f.state == State::at_warp ? "waits for its warp"
                                                   : "waits for its block";
    std::fprintf(stderr, "%s thread %d %s", shown++ ? ";" : "", i, what);
    if (f.state != State::done) std::fprintf(stderr, " at %s:%u", file_name(f.at), f.at.line());
  }
  report();
}

[[gnu::noinline, noreturn]] void jump(void** to) { __builtin_longjmp(to, 1); }

void enter() {
  block.body(block.closure);
  if (const std::vector<Copy>& left = block.fibers[block.current].copies; !left.empty())
    report_access("a copy that was never waited for", left[0].to, left[0].bytes);
  block.fibers[block.current].state = State::done;
  ++block.finished;
  // A thread never waits for one that is gone.
  if (block.arrived) divergence();
  if (block.warps[block.current / 32].arrived) divergence();
  for (int i = 1; i <= block.threads; ++i) {
    const int next = (block.current + i) % block.threads;
    if (block.fibers[next].state != State::ready) continue;
    block.current = next;
    threadIdx = dim3(next);
    Fiber& f = block.fibers[next];
    if (f.started) jump(f.jump);
    f.started = true;
    setcontext(&f.start);
  }
  if (block.finished < block.threads) divergence();
  jump(block.home);
}

// Runs other threads until this one is ready again.
[[gnu::noinline]] void wait() {
  const int self = block.current;
  int next = self;
  do {
    next = next + 1 == block.threads ? 0 : next + 1;
    if (next == self) divergence();
  } while (block.fibers[next].state != State::ready);
  if (__builtin_setjmp(block.fibers[self].jump) == 0) {
    block.current = next;
    threadIdx = dim3(next);
    Fiber& f = block.fibers[next];
    if (f.started) jump(f.jump);
    f.started = true;
    setcontext(&f.start);
  }
}

[[gnu::noinline]] void run_block() {
  block.current = 0;
  threadIdx = dim3(0);
  if (__builtin_setjmp(block.home) == 0) {
    block.fibers[0].started = true;
    setcontext(&block.fibers[0].start);
  }
}

void prepare(Fiber& f) {
  if (f.stack == nullptr) {
    f.stack = static_cast<char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (f.stack == MAP_FAILED) std::abort();
    mprotect(f.stack, 4096, PROT_NONE);
  }
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack;
  f.start.uc_stack.ss_size = kStackBytes;
  f.start.uc_link = nullptr;
  makecontext(&f.start, enter, 0);
  f.started = false;
  f.state = State::ready;
  f.copies.clear();
  f.groups = 0;
}

// Notes that the running thread reads or writes a cell; what is wrong with it, or null.
const char* note(Cell& cell, bool write) {
  const uint16_t self = uint16_t(block.current + 1);
  const int warp = block.current / 32;
  const uint32_t fences = block.warps[warp].fences;
  const auto warp_of = [](uint16_t reader) { return reader >= kOfWarp ? reader - kOfWarp : (reader - 1) / 32; };
  // Whether an earlier access by `other` has no barrier behind it that this thread shares.
  const auto races = [&](uint16_t other, uint32_t at_block, uint32_t at_warp) {
    if (other == 0) return false;
    if (at_block < block.first) return true;
    if (other == self || at_block != block.barriers) return false;
    return other == kMany || warp_of(other) != warp || at_warp == fences;
  };
  if (races(cell.writer, cell.write_block, cell.write_warp)) {
    return write ? "race of two writes" : "race of a write and a read";
  }
  if (write) {
    if (cell.read_before || races(cell.reader, cell.read_block, cell.read_warp)) return "race of a read and a write";
    cell.written = true;
    cell.writer = self;
    cell.write_block = block.barriers;
    cell.write_warp = fences;
    return nullptr;
  }
  if (cell.reader && cell.read_block < block.first) cell.read_before = true;
  if (cell.reader && cell.reader != self && cell.read_block == block.barriers) {
    cell.reader = cell.reader != kMany && warp_of(cell.reader) == warp ? uint16_t(kOfWarp + warp) : kMany;
  } else {
    cell.reader = self;
  }
  cell.read_block = block.barriers;
  cell.read_warp = fences;
  return nullptr;
}

}  // namespace

void run(dim3 grid, dim3 threads, size_t shared_bytes, void (*body)(void*), void* closure) {
  if (threads.x == 0 || threads.x % 32 || threads.y != 1 || threads.z != 1 || grid.y != 1 || grid.z != 1) {
    std::fprintf(stderr, "emulation: a launch has one dimension and whole warps\n");
    std::abort();
  }
  gridDim = grid;
  blockDim = threads;
  block.threads = int(threads.x);
  block.body = body;
  block.closure = closure;
  block.barriers = 0;
  block.pages.clear();
  if (block.fibers.size() < threads.x) block.fibers.resize(threads.x);
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = dim3(b);
    // Exactly as large as asked for, so that AddressSanitizer sees what lies outside.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes ? shared_bytes : 1)) std::abort();
    block.memory = static_cast<char*>(memory);
    block.size = shared_bytes;
    std::memset(block.memory, 0xff, shared_bytes);  // NaN in every type, should a read go unseen
    block.cells.assign((shared_bytes + kCell - 1) / kCell, Cell{});
    block.arrays.clear();
    block.warps.assign(threads.x / 32, Warp{});
    block.arrived = block.finished = 0;
    block.first = ++block.barriers;
    for (unsigned i = 0; i < threads.x; ++i) prepare(block.fibers[i]);
    block.running = true;
    run_block();
    block.running = false;
    std::free(block.memory);
    block.memory = nullptr;
  }
}

char* shared_memory() { return block.memory; }

void allot(const void* begin, size_t bytes) {
  for (const auto& array : block.arrays) {
    if (array.first == begin && array.second == bytes) return;
  }
  block.arrays.emplace_back(begin, bytes);
  const size_t first = static_cast<const char*>(begin) - block.memory;
  if (first > block.size || bytes > block.size - first)
    report_access("more allotted than the launch gave", begin, bytes);
  for (size_t i = first / kCell; i * kCell < first + bytes; ++i) block.cells[i].allotted = true;
}

void block_barrier(Place at) {
  Fiber& self = block.fibers[block.current];
  self.at = at;
  self.state = State::at_block;
  if (block.finished) divergence();
  if (++block.arrived < block.threads) return wait();
  for (int i = 0; i < block.threads; ++i) {
    if (!same(block.fibers[i].at, at)) divergence();
  }
  for (int i = 0; i < block.threads; ++i) block.fibers[i].state = State::ready;
  block.arrived = 0;
  ++block.barriers;
}

const char* exchange(const void* mine, size_t bytes, bool fence, Place at) {
  const int first = block.current / 32 * 32;
  Warp& warp = block.warps[block.current / 32];
  Fiber& self = block.fibers[block.current];
  char* slots = warp.slots[warp.turn];
  if (bytes) std::memcpy(slots + kSlotBytes * (block.current - first), mine, bytes);
  self.at = at;
  self.state = State::at_warp;
  if (++warp.arrived < 32) {
    for (int i = first; i < first + 32; ++i) {
      if (block.fibers[i].state == State::done) divergence();
    }
    wait();
    return slots;
  }
  for (int i = first; i < first + 32; ++i) {
    if (!same(block.fibers[i].at, at)) divergence();
  }
  for (int i = first; i < first + 32; ++i) block.fibers[i].state = State::ready;
  warp.arrived = 0;
  warp.turn ^= 1;
  warp.fences += fence;
  warp.multiplied = false;
  return slots;
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Place at) {
  if (reinterpret_cast<uintptr_t>(row) % 16) report_access("a matrix's row is not aligned to 16 bytes", row, 16);
  const size_t offset = static_cast<const char*>(row) - block.memory;
  if (offset >= block.size) report_access("a matrix's row lies outside", row, 16);
  shared_access(row, 16, false);
  const char* rows = exchange(&row, sizeof row, false, at);
  const int lane = block.current % 32;
  const auto half = [&](int matrix, int i, int j) {
    const uint16_t* from;
    std::memcpy(&from, rows + kSlotBytes * (8 * matrix + i), sizeof from);
    return uint32_t(from[j]);
  };
  for (int m = 0; m < 4; ++m) {
    const int i = lane / 4, j = lane % 4 * 2;
    r[m] = transposed ? half(m, j, i) | half(m, j + 1, i) << 16 : half(m, i, j) | half(m, i, j + 1) << 16;
  }
}

// The products of a warp and what they are added to, by the first lane that goes on, for all of them.
void multiply(Warp& warp, const char* slots, bool bf16) {
  const int depth = bf16 ? 16 : 8;
  double left[16][16], right[16 * 8], sum[16][8];
  const auto value = [](uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return double(x);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    uint32_t words[10];
    std::memcpy(words, slots + kSlotBytes * lane, sizeof words);
    // Words of A's rows g and g + 8 and of B's column g: one tf32 or two bfloat16 each.
    for (int i = 0; i < 6; ++i) {
      const int half = i < 4 ? i / 2 : i - 4;
      for (int k = 0; k < (bf16 ? 2 : 1); ++k) {
        const double x = value(!bf16 ? words[i] & 0xffffe000u : k == 0 ? words[i] << 16 : words[i] & 0xffff0000u);
        const int step = bf16 ? 8 * half + 2 * t + k : 4 * half + t;
        (i < 4 ? left[g + i % 2 * 8][step] : right[8 * step + g]) = x;
      }
    }
    for (int i = 0; i < 4; ++i) sum[g + i / 2 * 8][2 * t + i % 2] = value(words[6 + i]);
  }
  const machine::Unit unit = machine::unit_of(80, bf16 ? machine::kBfloat : machine::kTf32);
  for (int row = 0; row < 16; ++row) {
    machine::multiply_row(sum[row], left[row], right, depth, 8, unit);
    for (int j = 0; j < 8; ++j) warp.sums[row][j] = float(sum[row][j]);
  }
}

void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, Place at) {
  uint32_t mine[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  std::memcpy(mine + 6, c, sizeof c);
  const char* slots = exchange(mine, sizeof mine, false, at);
  const int lane = block.current % 32;
  Warp& warp = block.warps[block.current / 32];
  if (!warp.multiplied) multiply(warp, slots, bf16);
  warp.multiplied = true;
  for (int i = 0; i < 4; ++i) c[i] = warp.sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

// A copy may write at any time from here on: a write now for others' accesses, and one more when it has arrived.
void copy_async(void* to, const void* from, const void* value, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes)
    report_access("a copy is not aligned to its size", to, bytes);
  shared_access(to, bytes, true);
  Fiber& self = block.fibers[block.current];
  Copy copy{static_cast<char*>(to), {}, bytes, self.groups};
  std::memcpy(copy.value, value, bytes);
  self.copies.push_back(copy);
  for (size_t i = 0; i < bytes; i += kCell) block.cells[(copy.to - block.memory + i) / kCell].coming = true;
}

void commit_copies() { ++block.fibers[block.current].groups; }

void wait_copies(int groups) {
  Fiber& self = block.fibers[block.current];
  size_t arrived = 0;
  for (; arrived < self.copies.size() && self.copies[arrived].group + groups < self.groups; ++arrived) {
    const Copy& copy = self.copies[arrived];
    for (size_t i = 0; i < copy.bytes; i += kCell) block.cells[(copy.to - block.memory + i) / kCell].coming = false;
    shared_access(copy.to, copy.bytes, true);
    std::memcpy(copy.to, copy.value, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + arrived);
}

unsigned atomic_add(unsigned* p, unsigned by) {
  const size_t offset = reinterpret_cast<char*>(p) - block.memory;
  if (offset < block.size && !block.cells[offset / kCell].written) report_access("read before any write", p, sizeof *p);
  const unsigned before = *p;
  *p += by;
  return before;
}

void shared_access(const void* p, size_t bytes, bool write) {
  const size_t first = static_cast<const char*>(p) - block.memory;
  for (size_t i = first / kCell; i * kCell < first + bytes; ++i) {
    const bool inside = i < block.cells.size() && block.cells[i].allotted;
    if (!inside) report_access("access outside of what was allotted", p, bytes);
    Cell& cell = block.cells[i];
    if (cell.coming) report_access("access to where a copy is on its way", p, bytes);
    if (!write && !cell.written) report_access("read before any write", p, bytes);
    if (const char* wrong = note(cell, write)) report_access(wrong, p, bytes);
  }
}

void device_access(const void* p, size_t bytes, bool write) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(p);
  std::vector<Cell>* page = nullptr;
  for (uintptr_t i = first / kCell; i * kCell < first + bytes; ++i) {
    if (page == nullptr || i % kPage == 0) page = &block.pages[i / kPage];
    if (page->empty()) page->resize(kPage);
    if (const char* wrong = note((*page)[i % kPage], write)) report_access(wrong, p, bytes);
  }
}

}  // namespace emulation

namespace {

void access(const void* p, size_t bytes, bool write) {
  using namespace emulation;
  if (!block.running) return;
  const auto within = [&](const char* begin, size_t size) {
    return static_cast<size_t>(static_cast<const char*>(p) - begin) < size;
  };
  if (within(block.memory, block.size)) {
    shared_access(p, bytes, write);
  } else if (!within(block.fibers[block.current].stack, kStackBytes)) {
    device_access(p, bytes, write);
  }
}

}  // namespace

#define FASTCSM_WRAP(name, bytes, write)                       \
  extern "C" void __real___asan_##name##bytes(const void* p);  \
  extern "C" void __wrap___asan_##name##bytes(const void* p) { \
    access(p, bytes, write);                                   \
    __real___asan_##name##bytes(p);                            \
  }
#define FASTCSM_WRAP_ANY(name, write)                                    \
  extern "C" void __real___asan_##name##N(const void* p, size_t bytes);  \
  extern "C" void __wrap___asan_##name##N(const void* p, size_t bytes) { \
    access(p, bytes, write);                                             \
    __real___asan_##name##N(p, bytes);                                   \
  }
FASTCSM_WRAP(load, 1, false)
FASTCSM_WRAP(load, 2, false)
FASTCSM_WRAP(load, 4, false)
FASTCSM_WRAP(load, 8, false)
FASTCSM_WRAP(load, 16, false)
FASTCSM_WRAP(store, 1, true)
FASTCSM_WRAP(store, 2, true)
FASTCSM_WRAP(store, 4, true)
FASTCSM_WRAP(store, 8, true)
FASTCSM_WRAP(store, 16, true)
FASTCSM_WRAP_ANY(load, false)
FASTCSM_WRAP_ANY(store, true)
