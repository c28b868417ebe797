// What is known of every byte of memory: who wrote and read it, and when.
//
// Time is counted by each warp: a barrier, a fence or __syncwarp ends a moment. A warp knows up to which moment of
// every other warp what was done is ordered before what it does next (`clock`). Two accesses, one of them a write, of
// two warps, or in one moment of a warp by two lanes, are a race unless the later warp knows the earlier moment.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace machine {

constexpr int kMostWarps = 32;
constexpr uint32_t kSeveral = 32;  // lanes of a warp, where one would be 0..31

struct SharedShadow {
  int warps = 0;
  uint32_t base = 1;  // moments before are of earlier blocks
  uint32_t barriers = 1, now[kMostWarps] = {};
  uint32_t clock[kMostWarps][kMostWarps] = {}, proxied[kMostWarps][kMostWarps] = {};
  // Of each warp, the moment up to which it knows all others.
  uint32_t known[kMostWarps] = {};
  // For each byte: the last write and who by; each warp's last read, 64 * moment + lane; the last read's barriers.
  std::vector<uint32_t> written, read_barriers;
  std::vector<uint16_t> writer;
  std::vector<std::vector<uint32_t>> read;
  std::vector<uint8_t> coming;  // an asynchronous copy is on its way
  std::vector<uint8_t> copied;  // the last write was such a copy

  void begin(int warps_now, size_t bytes);
  // Ends the moment of one warp.
  void tick(int warp) { clock[warp][warp] = ++now[warp]; }
  // Orders all that these warps did before all that they do next.
  void join(uint64_t which);
  void proxy_fence(int warp);

  bool was_written(size_t at) const { return written[at] >= base; }
  // What is wrong with an access, or null.
  const char* note_read(int warp, int lane, size_t at, int bytes, bool race);
  const char* note_write(int warp, int lane, size_t at, int bytes, bool race, bool copy = false);
  // Whether what was written there has passed a proxy fence that this warp knows of.
  bool seen_by_proxy(int warp, size_t at) const { return written[at] <= proxied[warp][writer[at] >> 5]; }
};

struct GlobalCell {
  uint64_t write_block = 0, read_block = 0;
  uint32_t write_moment = 0, read_moment = 0, read_barriers = 0;
  uint16_t writer = 0, reader = 0;
  uint32_t read_pc = 0;  // of the last read
};
// A read that races with a write by one thread, `block` and `writer`.
struct Suspect {
  uint64_t block;
  uint16_t writer;
};
constexpr uint64_t kSeveralBlocks = ~0ull;
// A reader is warp << 5 | lane, several lanes of one warp, or threads of several warps.
constexpr uint16_t kOfWarp = 0x8000, kSeveralThreads = 0xffff;
constexpr int kPage = 1024;

struct Page {
  bool saved = false;
  std::vector<uint8_t> before;  // as the launch found it
  std::vector<GlobalCell> cells;
};

struct Range {
  uint64_t begin, end;
  std::string name;
};

// Global memory: the host's own, within ranges.
struct Memory {
  std::vector<Range> ranges;  // ascending, disjoint but for the same bytes under two names
  std::unordered_map<uint64_t, Page> pages;
  mutable size_t last = 0;
  uint64_t last_page = ~0ull;
  Page* page = nullptr;
  uint64_t distinct_read = 0, distinct_written = 0;  // bytes
  // By the read's place in the code and the byte's address.
  std::unordered_map<uint64_t, Suspect> suspects;

  void add(uint64_t address, uint64_t bytes, const std::string& name);
  void sort();
  const Range* find(uint64_t address, int bytes) const;
  // The sentence of an access that no range holds.
  std::string outside(uint64_t address, int bytes) const;
  Page& page_of(uint64_t address);
  void save(Page& page, uint64_t address);
  // What is wrong with an access, or null. Races of a read and a write become suspects.
  const char* note(bool write, uint64_t block, int warp, int lane, uint32_t pc, uint64_t address, int bytes,
                   const SharedShadow& times);
  bool suspected(uint64_t block, int warp, int lane, uint32_t pc, uint64_t address, int bytes) const;
};

}  // namespace machine
