// The machine: warps of 32 lanes that execute one kernel's instructions, and the memory that they share.
//
// A register is an array with a value for each lane, a predicate a word with a bit for each lane. Lanes of a warp that
// have parted run the group with the lowest place in the code first, so that they meet again. A `.sync` instruction
// waits for the lanes it names. Blocks follow each other; warps of a block take turns, in an order that is chosen.
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "ptx.h"
#include "shadow.h"

namespace machine {

constexpr uint32_t kEvery = 0xffffffffu;
// Where memory other than global lies among generic addresses; hosts use the lowest 47 bits.
constexpr uint64_t kSharedWindow = 1ull << 62, kParameterWindow = 1ull << 61, kLocalWindow = 1ull << 60;

struct Warp;
struct Instruction;
using Step = void (*)(Warp&, const Instruction&);

// What an instruction is counted as.
enum class Kind : uint8_t {
  integer,
  float32,
  float64,
  half,
  special,  // approximate functions
  convert,
  select,  // comparisons and choices
  move,
  parameter,
  load_global,
  store_global,
  load_shared,
  store_shared,
  local,
  copy,  // cp.async
  matrix,
  matrix_memory,  // ldmatrix, stmatrix
  shuffle,        // votes and the like too
  barrier,
  branch,
  atomic,
  other,
  count
};
extern const char* const kKindNames[];

enum class Flow : uint8_t { plain, branch, table, leave, barrier, lanes, whole };
enum class Space : uint8_t { generic, global, shared, local, parameter };

struct Instruction {
  Step step = nullptr;
  int32_t guard = -1;  // offset of a predicate
  bool negated = false;
  Flow flow = Flow::plain;
  Kind kind = Kind::other;
  Space space = Space::generic;
  uint8_t bytes = 0;            // of an element in memory
  uint8_t option = 0;           // meaning of the step's own
  bool asynchronous = false;    // wgmma's own instructions, which may name registers in flight
  std::array<uint32_t, 5> a{};  // offsets of registers
  std::vector<uint32_t> more;   // those of vectors and fragments
  int64_t number = 0;           // an immediate
  int64_t second = 0;
  const Statement* source = nullptr;
  // For the estimate of time: registers, as offset / 64, and cycles until the result is there.
  std::vector<uint32_t> reads, writes;
  uint32_t latency = 4;
  bool tracks = false;  // it may make an address
};

// A module's table in the host's memory.
constexpr uint64_t kTableAlignment = 256;
struct Table {
  std::shared_ptr<std::vector<uint8_t>> memory;
  uint64_t begin = 0, bytes = 0;
};

// A kernel ready to run.
struct Program {
  const Module* module = nullptr;
  const Source* source = nullptr;
  std::vector<Instruction> code;
  std::vector<uint8_t> image;  // registers as a warp begins: constants, and all bits set elsewhere
  std::unordered_map<std::string, uint32_t> specials;
  std::vector<std::vector<uint32_t>> tables;
  std::unordered_map<std::string, Table> globals;
};

Program prepare(const Module& module, const std::string& kernel);

struct Counts {
  std::vector<uint64_t> executed;  // for each instruction, by warps
  uint64_t shared_accesses = 0, shared_wavefronts = 0, shared_least = 0;
  uint64_t device_accesses = 0, traced = 0;  // by instructions, and those whose tensor is known
  uint64_t global_sectors = 0, global_least = 0, bytes_read = 0, bytes_written = 0;
  uint64_t duplicates = 0;       // writes without order that change nothing
  uint64_t dead_reads = 0;       // instructions whose racing reads change nothing
  uint64_t unfenced_copies = 0;  // pieces of 16 bytes that wgmma read with no proxy fence since their copy
  uint64_t flops = 0;            // of matrix instructions
  uint64_t path = 0;             // cycles along the longest chain of dependences of a block
};

struct Launch {
  const Program* program = nullptr;
  std::array<uint32_t, 3> grid{1, 1, 1};
  int threads = 0, architecture = 80;
  int64_t shared_bytes = 0;
  std::vector<uint8_t> parameters;
  Memory memory;
  uint64_t order = 0;   // 0: ascending; others: orders that are made from it
  uint64_t limit = 0;   // instructions of a warp in a block
  bool checks = true;   // of races
  bool poison = false;  // suspected reads find garbage
  bool paths = false;   // whether chains of dependences are followed
  Counts counts;
  std::vector<std::string> faults;     // that do not stop the launch, each instruction once
  std::vector<std::string> doubts;     // races of a read of device memory, of no matter if its value is of none
  std::unordered_set<uint64_t> known;  // faults that were noted, by what and where
};

struct Copy {
  uint32_t to;
  int lane;
  int group;  // -1: not ended yet
  uint8_t bytes;
  std::array<uint8_t, 16> value;
};

// A matrix instruction of Hopper on its way.
struct Product {
  const Instruction* instruction;
  int group;
  uint64_t a, b;                // descriptors
  std::vector<uint8_t> before;  // operands in shared memory as they were
};

// When a warp's registers are ready, in cycles, were every instruction issued as soon as its operands are there.
struct Clock {
  std::vector<uint32_t> ready;
  uint32_t floor = 0, last = 0;  // since the last barrier or branch; of anything so far
  uint32_t products = 0;         // when the matrix unit is free
  uint32_t copied = 0;           // when copies that are not in a group will have arrived
  std::vector<uint32_t> groups;  // when each group of copies will have
};

// Of registers that hold no address, and of those that come from several tensors.
constexpr uint16_t kNowhere = 0, kSeveralTensors = 0xffff;

struct Group {
  uint32_t pc, lanes;
  bool waits;
};

struct Block;

struct Warp {
  Block* block = nullptr;
  int index = 0;
  std::vector<uint8_t> file;  // registers
  std::vector<uint8_t> local;
  std::vector<Group> groups;  // of lanes, those that run first by place
  uint32_t live = kEvery;     // lanes that have not left
  uint32_t mask = 0, pc = 0;  // of the instruction that runs
  uint64_t steps = 0;
  int barrier = -1;  // that it waits at
  int barrier_warps = 0;
  std::vector<Copy> copies;
  std::array<int, 32> copy_groups{};
  std::vector<Product> products;
  int product_groups = 0;
  bool fenced = false;           // registers, for products to come
  bool yields = false;           // it waits for another warp in a loop
  std::vector<uint32_t> flying;  // registers that products will write
  std::vector<uint16_t> origin;  // of registers, by offset / 64: 1 + the range that an address was made from
  Clock clock;

  template <class T>
  T* at(uint32_t offset) {
    return reinterpret_cast<T*>(file.data() + offset);
  }
  bool done() const { return live == 0; }
};

struct MemoryBarrier {
  uint32_t expected = 0, missing = 0;  // arrivals of a phase
  uint64_t phase = 0;
  std::array<uint32_t, kMostWarps> clock{}, proxied{};  // what those who arrived knew
};

struct Block {
  Launch* launch = nullptr;
  std::array<uint32_t, 3> place{};
  uint64_t serial = 0;
  std::vector<uint8_t> memory;  // shared
  SharedShadow shadow;
  std::vector<Warp> warps;
  std::map<uint32_t, MemoryBarrier> barriers;  // by address
};

// Runs one block, and all of them.
void run_block(Block& block);
void run(Launch& launch);
// Runs a warp until it waits for its block, has left, or has executed `budget` instructions.
void run_warp(Warp& warp, uint64_t budget);

// Where the warp is, for a fault's sentence.
std::string where(const Warp& warp, int lane);
[[noreturn]] void fault(const Warp& warp, int lane, const std::string& what);
// A fault that the launch survives, noted once for each instruction.
void note(Warp& warp, int lane, const std::string& what, bool doubt = false);

// Accesses of lane `lane` to memory, checked.
void read_shared(Warp& warp, int lane, uint64_t address, int bytes, void* to);
void write_shared(Warp& warp, int lane, uint64_t address, int bytes, const void* from);
void read_global(Warp& warp, int lane, uint64_t address, int bytes, void* to);
void write_global(Warp& warp, int lane, uint64_t address, int bytes, const void* from);
// Wavefronts of one access by lanes whose addresses these are.
void count_shared(Warp& warp, const uint64_t* address, uint32_t lanes, int bytes);
// Rows of 16 bytes, eight of them at a time.
void count_matrix_rows(Warp& warp, const uint64_t* rows, int n);

// Where the addresses come from that an instruction has made.
void track(Warp& warp, const Instruction& i);
// Follows an instruction's dependences.
void follow(Warp& warp, const Instruction& i);

void finish_products(Warp& warp, int left);
void release(Block& block, int barrier);

template <class F>
inline void each(uint32_t mask, F f) {
  if (mask == kEvery) {
#pragma GCC ivdep
    for (int lane = 0; lane < 32; ++lane) f(lane);
  } else {
    for (int lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1) f(lane);
    }
  }
}

}  // namespace machine
