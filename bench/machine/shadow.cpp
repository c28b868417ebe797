#include "shadow.h"

#include <cstring>
#include <sstream>

namespace machine {

void SharedShadow::begin(int warps_now, size_t bytes) {
  uint32_t latest = base;
  for (int w = 0; w < kMostWarps; ++w) latest = std::max(latest, now[w]);
  warps = warps_now;
  base = latest + 1;
  ++barriers;
  for (int w = 0; w < kMostWarps; ++w) {
    now[w] = base;
    for (int v = 0; v < kMostWarps; ++v) {
      clock[w][v] = w == v ? base : base - 1;
      proxied[w][v] = base - 1;
    }
  }
  written.resize(bytes);
  writer.resize(bytes);
  read_barriers.resize(bytes);
  coming.assign(bytes, 0);
  copied.assign(bytes, 0);
  read.resize(warps);
  for (int w = 0; w < warps; ++w) {
    read[w].resize(bytes);
    known[w] = base - 1;
  }
}

void SharedShadow::join(uint64_t which) {
  uint32_t joined[kMostWarps] = {}, fences[kMostWarps] = {};
  for (int w = 0; w < warps; ++w) {
    if (!(which >> w & 1)) continue;
    for (int v = 0; v < warps; ++v) {
      joined[v] = std::max(joined[v], clock[w][v]);
      fences[v] = std::max(fences[v], proxied[w][v]);
    }
  }
  for (int w = 0; w < warps; ++w) {
    if (!(which >> w & 1)) continue;
    std::memcpy(clock[w], joined, sizeof joined);
    std::memcpy(proxied[w], fences, sizeof fences);
    tick(w);
    known[w] = ~0u;
    for (int v = 0; v < warps; ++v) known[w] = std::min(known[w], v == w ? known[w] : clock[w][v]);
    known[w] = std::min(known[w], now[w] - 1);
  }
  if (which + 1 == 1ull << warps) ++barriers;
}

void SharedShadow::proxy_fence(int warp) {
  for (int v = 0; v < warps; ++v) proxied[warp][v] = std::max(proxied[warp][v], clock[warp][v]);
  tick(warp);
}

namespace {

// For accesses of one size, so that compilers can unroll them.
template <int kBytes>
const char* note_read_of(SharedShadow& s, int warp, int lane, size_t at, bool race) {
  const uint32_t* written = s.written.data() + at;
  const uint16_t* writer = s.writer.data() + at;
  uint32_t *read = s.read[warp].data() + at, *read_barriers = s.read_barriers.data() + at;
  const uint32_t now = s.now[warp];
  uint32_t oldest = ~0u, newest = 0;
  uint8_t coming = 0;
  for (int i = 0; i < kBytes; ++i) {
    oldest = std::min(oldest, written[i]);
    newest = std::max(newest, written[i]);
    coming |= s.coming[at + i];
    const bool shared = read[i] >> 6 == now && (read[i] & 63) != uint32_t(lane);
    read[i] = now << 6 | (shared ? kSeveral : uint32_t(lane));
    read_barriers[i] = s.barriers;
  }
  if (coming) return "read of bytes whose asynchronous copy was not waited for";
  if (oldest < s.base) return "shared memory read before it was written";
  if (!race || newest <= s.known[warp]) return nullptr;
  for (int i = 0; i < kBytes; ++i) {
    const int by = writer[i] >> 5;
    if (by != warp ? written[i] > s.clock[warp][by] : (writer[i] & 31) != lane && written[i] == now) {
      return "race: a read of shared memory with no barrier after another's write";
    }
  }
  return nullptr;
}

template <int kBytes>
const char* note_write_of(SharedShadow& s, int warp, int lane, size_t at, bool race, bool copy) {
  uint32_t* written = s.written.data() + at;
  uint16_t* writer = s.writer.data() + at;
  const uint32_t now = s.now[warp];
  uint32_t newest = 0, latest = 0;
  uint8_t coming = 0;
  for (int i = 0; i < kBytes; ++i) {
    newest = std::max(newest, written[i]);
    latest = std::max(latest, s.read_barriers[at + i]);
    coming |= s.coming[at + i];
  }
  const char* wrong = coming ? "write to bytes whose asynchronous copy was not waited for" : nullptr;
  if (race && newest > s.known[warp]) {
    for (int i = 0; i < kBytes && !wrong; ++i) {
      const int by = writer[i] >> 5;
      if (written[i] >= s.base &&
          (by != warp ? written[i] > s.clock[warp][by] : (writer[i] & 31) != lane && written[i] == now)) {
        wrong = "race: a write to shared memory with no barrier after another's write";
      }
    }
  }
  if (race && latest == s.barriers) {
    for (int v = 0; v < s.warps && !wrong; ++v) {
      for (int i = 0; i < kBytes && !wrong; ++i) {
        const uint32_t moment = s.read[v][at + i] >> 6, reader = s.read[v][at + i] & 63;
        if (moment < s.base) continue;
        if (v != warp ? moment > s.clock[warp][v] : reader != uint32_t(lane) && moment == now) {
          wrong = "race: a write to shared memory with no barrier after another's read";
        }
      }
    }
  }
  for (int i = 0; i < kBytes; ++i) {
    written[i] = now;
    writer[i] = uint16_t(warp << 5 | lane);
    s.copied[at + i] = copy;
  }
  return wrong;
}

}  // namespace

const char* SharedShadow::note_read(int warp, int lane, size_t at, int bytes, bool race) {
  switch (bytes) {
    case 1:
      return note_read_of<1>(*this, warp, lane, at, race);
    case 2:
      return note_read_of<2>(*this, warp, lane, at, race);
    case 4:
      return note_read_of<4>(*this, warp, lane, at, race);
    case 8:
      return note_read_of<8>(*this, warp, lane, at, race);
    default:
      return note_read_of<16>(*this, warp, lane, at, race);
  }
}

const char* SharedShadow::note_write(int warp, int lane, size_t at, int bytes, bool race, bool copy) {
  switch (bytes) {
    case 1:
      return note_write_of<1>(*this, warp, lane, at, race, copy);
    case 2:
      return note_write_of<2>(*this, warp, lane, at, race, copy);
    case 4:
      return note_write_of<4>(*this, warp, lane, at, race, copy);
    case 8:
      return note_write_of<8>(*this, warp, lane, at, race, copy);
    default:
      return note_write_of<16>(*this, warp, lane, at, race, copy);
  }
}

void Memory::add(uint64_t address, uint64_t bytes, const std::string& name) {
  if (bytes) ranges.push_back({address, address + bytes, name});
}

void Memory::sort() {
  std::stable_sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    if (!merged.empty() && range.begin < merged.back().end) {
      if (range.end > merged.back().end) {
        merged.back().end = range.end;
        merged.back().name += " and " + range.name;
      }
    } else {
      merged.push_back(range);
    }
  }
  ranges = std::move(merged);
}

const Range* Memory::find(uint64_t address, int bytes) const {
  if (last < ranges.size() && address >= ranges[last].begin && address + bytes <= ranges[last].end) {
    return &ranges[last];
  }
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), address,
                                      [](uint64_t at, const Range& range) { return at < range.begin; });
  if (after == ranges.begin()) return nullptr;
  const Range& range = *(after - 1);
  if (address + bytes > range.end) return nullptr;
  last = size_t(after - 1 - ranges.begin());
  return &range;
}

std::string Memory::outside(uint64_t address, int bytes) const {
  std::ostringstream text;
  text << bytes << " bytes at 0x" << std::hex << address << std::dec;
  const Range* nearest = nullptr;
  uint64_t least = 1ull << 20;
  for (const Range& range : ranges) {
    const uint64_t distance = address < range.begin ? range.begin - address : address - range.begin;
    const uint64_t gap = address < range.begin ? distance : distance - std::min(distance, range.end - range.begin);
    if (gap < least) least = gap, nearest = &range;
  }
  if (nearest) {
    text << ", byte " << int64_t(address - nearest->begin) << " of " << nearest->name << ", which has "
         << nearest->end - nearest->begin;
  } else {
    text << ", which is near no tensor of the launch";
  }
  return text.str();
}

Page& Memory::page_of(uint64_t address) {
  const uint64_t key = address / kPage;
  if (key != last_page) {
    page = &pages[key];
    last_page = key;
  }
  return *page;
}

void Memory::save(Page& page, uint64_t address) {
  if (page.saved) return;
  page.saved = true;
  // A page of the host's has at least one byte of a range, and so lies in memory.
  page.before.resize(kPage);
  std::memcpy(page.before.data(), reinterpret_cast<const void*>(address / kPage * kPage), kPage);
}

namespace {

uint64_t suspect_key(uint32_t pc, uint64_t address) { return uint64_t(pc) << 47 ^ address; }

}  // namespace

bool Memory::suspected(uint64_t block, int warp, int lane, uint32_t pc, uint64_t address, int bytes) const {
  for (uint64_t at = address; at < address + bytes; ++at) {
    const auto found = suspects.find(suspect_key(pc, at));
    if (found == suspects.end()) continue;
    if (found->second.block != block || found->second.writer != uint16_t(warp << 5 | lane)) return true;
  }
  return false;
}

const char* Memory::note(bool write, uint64_t block, int warp, int lane, uint32_t pc, uint64_t address, int bytes,
                         const SharedShadow& times) {
  const char* wrong = nullptr;
  const uint16_t self = uint16_t(warp << 5 | lane);
  for (uint64_t at = address; at < address + bytes; ++at) {
    Page& p = page_of(at);
    if (p.cells.empty()) p.cells.resize(kPage);
    GlobalCell& cell = p.cells[at % kPage];
    const auto races = [&](uint64_t by, uint16_t who, uint32_t moment) {
      if (by == 0) return false;
      if (by != block) return true;
      if (who == kSeveralThreads) return true;
      const int other = (who & ~kOfWarp) >> 5;
      return other != warp ? moment > times.clock[warp][other] : who != self && moment == times.now[warp];
    };
    if (races(cell.write_block, cell.writer, cell.write_moment)) {
      if (!write) suspects[suspect_key(pc, at)] = {cell.write_block, cell.writer};
      wrong = write ? "race: two writes to device memory with no order between them"
                    : "race: a read of device memory with no order after another's write";
    }
    (write ? distinct_written : distinct_read) += write ? cell.write_block == 0 : cell.read_block == 0;
    if (write) {
      const bool before_barrier = cell.read_block == block && cell.read_barriers != times.barriers;
      if (!before_barrier && races(cell.read_block, cell.reader, cell.read_moment)) {
        suspects[suspect_key(cell.read_pc, at)] = {block, self};
        if (!wrong) wrong = "race: a write to device memory with no order after another's read";
      }
      cell.write_block = block;
      cell.writer = self;
      cell.write_moment = times.now[warp];
    } else {
      const bool same = cell.read_block == block && cell.read_barriers == times.barriers;
      if (cell.read_block && cell.read_block != block) {
        cell.read_block = kSeveralBlocks;
      } else {
        const uint16_t before = cell.reader;
        const bool by_warp = before != kSeveralThreads && (before & ~kOfWarp) >> 5 == warp;
        cell.read_block = block;
        cell.reader = !same || before == self ? self : by_warp ? uint16_t(kOfWarp | warp << 5) : kSeveralThreads;
      }
      cell.read_moment = times.now[warp];
      cell.read_pc = pc;
      cell.read_barriers = times.barriers;
    }
  }
  return wrong;
}

}  // namespace machine
