// Loads, stores, copies and atomics, and what is checked and counted of every access.
#include "decode.h"

#include <type_traits>

namespace machine {

namespace {

void note_if(Warp& w, int lane, const char* wrong) {
  if (wrong) note(w, lane, wrong);
}

void expect_shared(Warp& w, int lane, uint64_t address, int bytes, const char* what) {
  if (address + bytes <= w.block->memory.size() && address < kLocalWindow) return;
  fault(w, lane,
        std::string(what) + " shared memory out of bounds: " + std::to_string(bytes) + " bytes at byte " +
            std::to_string(int64_t(address)) + " of " + std::to_string(w.block->memory.size()));
}

}  // namespace

void read_shared(Warp& w, int lane, uint64_t address, int bytes, void* to) {
  expect_shared(w, lane, address, bytes, "a read of");
  note_if(w, lane, w.block->shadow.note_read(w.index, lane, address, bytes, w.block->launch->checks));
  std::memcpy(to, w.block->memory.data() + address, bytes);
}

void write_shared(Warp& w, int lane, uint64_t address, int bytes, const void* from) {
  expect_shared(w, lane, address, bytes, "a write to");
  uint8_t* at = w.block->memory.data() + address;
  const char* wrong = w.block->shadow.note_write(w.index, lane, address, bytes, w.block->launch->checks);
  if (wrong && std::memcmp(at, from, bytes) == 0 && std::strstr(wrong, "another's write")) {
    ++w.block->launch->counts.duplicates;
    wrong = nullptr;
  }
  note_if(w, lane, wrong);
  std::memcpy(at, from, bytes);
}

void read_global(Warp& w, int lane, uint64_t address, int bytes, void* to) {
  Launch& launch = *w.block->launch;
  if (!launch.memory.find(address, bytes)) {
    fault(w, lane, "a read of device memory out of bounds: " + launch.memory.outside(address, bytes));
  }
  if (launch.checks) {
    const char* wrong =
        launch.memory.note(false, w.block->serial, w.index, lane, w.pc, address, bytes, w.block->shadow);
    if (wrong) note(w, lane, wrong, true);
  }
  std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
  if (launch.poison && launch.memory.suspected(w.block->serial, w.index, lane, w.pc, address, bytes)) {
    for (int k = 0; k < bytes; ++k) static_cast<uint8_t*>(to)[k] ^= 0x5a;
  }
}

void write_global(Warp& w, int lane, uint64_t address, int bytes, const void* from) {
  Launch& launch = *w.block->launch;
  if (!launch.memory.find(address, bytes)) {
    fault(w, lane, "a write to device memory out of bounds: " + launch.memory.outside(address, bytes));
  }
  launch.memory.save(launch.memory.page_of(address), address);
  if (launch.checks) {
    const char* wrong = launch.memory.note(true, w.block->serial, w.index, lane, w.pc, address, bytes, w.block->shadow);
    const bool of_writes = wrong && std::strstr(wrong, "two writes");
    if (of_writes && std::memcmp(reinterpret_cast<const void*>(address), from, bytes) == 0) {
      ++launch.counts.duplicates;
    } else if (wrong) {
      note(w, lane, wrong, !of_writes);
    }
  }
  std::memcpy(reinterpret_cast<void*>(address), from, bytes);
}

void count_shared(Warp& w, const uint64_t* address, uint32_t lanes, int bytes) {
  Counts& counts = w.block->launch->counts;
  if (!lanes) return;
  ++counts.shared_accesses;
  // 128 bytes at a time: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16.
  const int at_once = bytes <= 4 ? 32 : 128 / bytes, words = std::max(bytes / 4, 1);
  uint64_t distinct = 0, wavefronts = 0;
  for (int first = 0; first < 32; first += at_once) {
    uint32_t seen[32][32];
    int depth[32] = {}, most = 0;
    for (int lane = first; lane < first + at_once; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int k = 0; k < words; ++k) {
        const uint32_t word = uint32_t(address[lane] / 4) + k;
        const int bank = word % 32;
        bool known = false;
        for (int d = 0; d < depth[bank]; ++d) known |= seen[bank][d] == word;
        if (known) continue;
        seen[bank][depth[bank]++] = word;
        most = std::max(most, depth[bank]);
        ++distinct;
      }
    }
    wavefronts += most;
  }
  counts.shared_wavefronts += wavefronts;
  counts.shared_least += (distinct + 31) / 32;
}

void count_matrix_rows(Warp& w, const uint64_t* rows, int n) {
  Counts& counts = w.block->launch->counts;
  ++counts.shared_accesses;
  counts.shared_least += n;
  for (int k = 0; k < n; ++k) {
    int depth[8] = {}, most = 0;
    for (int r = 0; r < 8; ++r) {
      bool known = false;
      for (int before = 0; before < r; ++before) known |= rows[8 * k + before] == rows[8 * k + r];
      if (!known) most = std::max(most, ++depth[rows[8 * k + r] / 16 % 8]);
    }
    counts.shared_wavefronts += most;
  }
}

namespace {

void count_global(Warp& w, const uint64_t* address, uint32_t lanes, int bytes, bool write) {
  Counts& counts = w.block->launch->counts;
  if (!lanes) return;
  uint64_t sectors[64], pieces[32];
  int n = 0, m = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (uint64_t sector = address[lane] / 32; sector <= (address[lane] + bytes - 1) / 32; ++sector) {
      bool known = false;
      for (int k = n - 1; k >= 0 && !known; --k) known = sectors[k] == sector;
      if (!known && n < 64) sectors[n++] = sector;
    }
    bool known = false;
    for (int k = m - 1; k >= 0 && !known; --k) known = pieces[k] == address[lane];
    if (!known) pieces[m++] = address[lane];
  }
  counts.global_sectors += n;
  counts.global_least += (uint64_t(m) * bytes + 31) / 32;
  (write ? counts.bytes_written : counts.bytes_read) += uint64_t(m) * bytes;
}

// Addresses of an instruction's lanes; option bit 0: the base has 64 bits.
std::array<uint64_t, 32> addresses(Warp& w, uint32_t base, int64_t offset, bool wide) {
  std::array<uint64_t, 32> out;
  for (int lane = 0; lane < 32; ++lane) {
    out[lane] = wide ? w.at<uint64_t>(base)[lane] + uint64_t(offset) : w.at<uint32_t>(base)[lane] + uint32_t(offset);
  }
  return out;
}

Space space_of(Space named, uint64_t& address) {
  if (named != Space::generic) return named;
  if (address >= kSharedWindow) return address -= kSharedWindow, Space::shared;
  if (address >= kParameterWindow) return address -= kParameterWindow, Space::parameter;
  if (address >= kLocalWindow) return address -= kLocalWindow, Space::local;
  return Space::global;
}

void expect_aligned(Warp& w, int lane, uint64_t address, int bytes) {
  if (address % bytes) {
    fault(w, lane,
          "misaligned: " + std::to_string(bytes) + " bytes at an address that is " + std::to_string(address % bytes) +
              " past a multiple of it");
  }
}

uint8_t* local_memory(Warp& w, int lane, uint64_t address, int bytes) {
  const int64_t most = w.block->launch->program->source->local_bytes;
  if (address + bytes > uint64_t(most)) {
    fault(w, lane,
          "the stack is overrun: " + std::to_string(bytes) + " bytes at byte " + std::to_string(int64_t(address)) +
              " of " + std::to_string(most));
  }
  return w.local.data() + uint64_t(lane) * most + address;
}

void read_memory(Warp& w, int lane, Space space, uint64_t address, int bytes, void* to) {
  if (space == Space::global) return read_global(w, lane, address, bytes, to);
  if (space == Space::shared) return read_shared(w, lane, address, bytes, to);
  if (space == Space::local) {
    std::memcpy(to, local_memory(w, lane, address, bytes), bytes);
    return;
  }
  const std::vector<uint8_t>& parameters = w.block->launch->parameters;
  if (address + bytes > parameters.size()) {
    fault(w, lane,
          "parameters are overrun: " + std::to_string(bytes) + " bytes at byte " + std::to_string(int64_t(address)) +
              " of " + std::to_string(parameters.size()));
  }
  std::memcpy(to, parameters.data() + address, bytes);
}

void write_memory(Warp& w, int lane, Space space, uint64_t address, int bytes, const void* from) {
  if (space == Space::global) return write_global(w, lane, address, bytes, from);
  if (space == Space::shared) return write_shared(w, lane, address, bytes, from);
  if (space == Space::parameter) fault(w, lane, "a write to parameters");
  std::memcpy(local_memory(w, lane, address, bytes), from, bytes);
}

// option: 1 the base has 64 bits, 2 values are signed; second: bytes of a register.
void load(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[0], i.number, i.option & 1);
  const int all = int(i.bytes * i.more.size());
  uint32_t shared = 0, global = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], all);
    uint8_t value[64];
    read_memory(w, lane, space, at[lane], all, value);
    (space == Space::shared ? shared : global) |= uint32_t(space == Space::shared || space == Space::global) << lane;
    for (size_t k = 0; k < i.more.size(); ++k) {
      uint64_t part = 0;
      std::memcpy(&part, value + k * i.bytes, i.bytes);
      if (i.option & 2) part = uint64_t(int64_t(part << (64 - 8 * i.bytes)) >> (64 - 8 * i.bytes));
      std::memcpy(w.file.data() + i.more[k] + size_t(i.second) * lane, &part, i.second);
    }
  }
  count_shared(w, at.data(), shared, all);
  count_global(w, at.data(), global, all, false);
}

// The common case: every lane reads the same parameter.
template <class T>
void load_parameter(Warp& w, const Instruction& i) {
  const std::vector<uint8_t>& parameters = w.block->launch->parameters;
  for (size_t k = 0; k < i.more.size(); ++k) {
    const uint64_t address = uint64_t(i.number) + k * sizeof(T);
    if (address + sizeof(T) > parameters.size()) {
      fault(w, __builtin_ctz(w.mask),
            "parameters are overrun: " + std::to_string(sizeof(T)) + " bytes at byte " + std::to_string(address) +
                " of " + std::to_string(parameters.size()));
    }
    T value;
    std::memcpy(&value, parameters.data() + address, sizeof(T));
    T* to = w.at<T>(i.more[k]);
    each(w.mask, [&](int lane) { to[lane] = value; });
  }
}

void store(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[0], i.number, i.option & 1);
  const int all = int(i.bytes * i.more.size());
  uint32_t shared = 0, global = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], all);
    uint8_t value[64];
    for (size_t k = 0; k < i.more.size(); ++k) {
      std::memcpy(value + k * i.bytes, w.file.data() + i.more[k] + size_t(i.second) * lane, i.bytes);
    }
    (space == Space::shared ? shared : global) |= uint32_t(space == Space::shared || space == Space::global) << lane;
    write_memory(w, lane, space, at[lane], all, value);
  }
  count_shared(w, at.data(), shared, all);
  count_global(w, at.data(), global, all, true);
}

Space named_space(Decoder& d) {
  for (const std::string& word : d.statement->op) {
    if (word.compare(0, 6, "shared") == 0) return Space::shared;
    if (word == "global" || word == "const") return Space::global;
    if (word == "local") return Space::local;
    if (word.compare(0, 5, "param") == 0) return Space::parameter;
  }
  return Space::generic;
}

bool access(Decoder& d, bool reads) {
  const std::string& values = d.operand(reads ? 0 : 1);
  bool wide = false;
  d.now.space = named_space(d);
  d.address(d.operand(reads ? 1 : 0), 0, d.now.number, wide);
  d.now.bytes = uint8_t(bytes_of(d.type()));
  d.now.option = uint8_t(wide | (d.type()[0] == 's' ? 2 : 0));
  const std::string inside = values[0] == '{' ? values.substr(1, values.size() - 2) : values;
  int own = 0;
  for (const std::string& part : operands_of(inside)) {
    if (part == "_") {
      d.now.more.push_back(d.value(part, 8));
      continue;
    }
    d.now.more.push_back(d.any(part, own, d.now.bytes));
    if (own < d.now.bytes) d.unknown();
  }
  d.now.second = own;
  const bool global = d.now.space == Space::global || d.now.space == Space::generic;
  d.now.kind = d.now.space == Space::parameter ? Kind::parameter
               : d.now.space == Space::local   ? Kind::local
               : reads                         ? (global ? Kind::load_global : Kind::load_shared)
                                               : (global ? Kind::store_global : Kind::store_shared);
  d.now.step = reads ? load : store;
  const std::string base = trim(d.operand(reads ? 1 : 0).substr(1));
  if (reads && d.now.space == Space::parameter && base[0] != '%' && own == d.now.bytes) {
    // The symbol's own offset is the constant that address() made of it.
    d.now.number += d.offset_of_parameter(base);
    d.now.step = own == 2 ? load_parameter<uint16_t> : own == 4 ? load_parameter<uint32_t> : load_parameter<uint64_t>;
    if (own == 1) return false;
  }
  return true;
}

// ---- asynchronous copies

void copy(Warp& w, const Instruction& i) {
  const auto to = addresses(w, i.a[0], i.number, i.option & 1);
  const auto from = addresses(w, i.a[1], i.second, i.option & 2);
  uint32_t reading = 0;
  SharedShadow& shadow = w.block->shadow;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const int given = i.more.empty() ? i.bytes : int(w.at<uint32_t>(i.more[0])[lane]);
    if (given > i.bytes) fault(w, lane, "a copy of more bytes than it has place for");
    Copy c{uint32_t(to[lane]), lane, -1, i.bytes, {}};
    expect_shared(w, lane, to[lane], i.bytes, "a copy to");
    expect_aligned(w, lane, to[lane], i.bytes);
    if (given) {
      expect_aligned(w, lane, from[lane], i.bytes);
      read_global(w, lane, from[lane], given, c.value.data());
      reading |= 1u << lane;
    }
    note_if(w, lane, shadow.note_write(w.index, lane, to[lane], i.bytes, w.block->launch->checks));
    std::fill_n(shadow.coming.begin() + to[lane], i.bytes, uint8_t(1));
    w.copies.push_back(c);
  }
  count_global(w, from.data(), reading, i.bytes, false);
  count_shared(w, to.data(), w.mask, i.bytes);
}

void end_copies(Warp& w, const Instruction&) {
  for (Copy& c : w.copies) {
    if (c.group < 0 && w.mask >> c.lane & 1) c.group = w.copy_groups[c.lane];
  }
  each(w.mask, [&](int lane) { ++w.copy_groups[lane]; });
}

// number: how many groups may go on, or -1 for none, ended or not.
void wait_copies(Warp& w, const Instruction& i) {
  std::vector<Copy> left;
  for (const Copy& c : w.copies) {
    const bool ended = c.group >= 0 || i.number < 0;
    const bool arrives = w.mask >> c.lane & 1 && ended && (i.number < 0 || c.group < w.copy_groups[c.lane] - i.number);
    if (!arrives) {
      left.push_back(c);
      continue;
    }
    std::fill_n(w.block->shadow.coming.begin() + c.to, c.bytes, uint8_t(0));
    w.block->shadow.note_write(w.index, c.lane, c.to, c.bytes, false);
    std::memcpy(w.block->memory.data() + c.to, c.value.data(), c.bytes);
  }
  w.copies = std::move(left);
}

bool copies(Decoder& d) {
  d.now.kind = Kind::copy;
  if (d.has("commit_group")) {
    d.now.step = end_copies;
  } else if (d.has("wait_group") || d.has("wait_all")) {
    d.now.step = wait_copies;
    d.now.number = d.has("wait_all") ? -1 : d.number(d.operand(0));
  } else if (d.word(1) == "async" && d.has("global") && !d.has("bulk") && !d.has("mbarrier")) {
    bool to_wide = false, from_wide = false;
    d.address(d.operand(0), 0, d.now.number, to_wide);
    d.address(d.operand(1), 1, d.now.second, from_wide);
    d.now.bytes = uint8_t(d.number(d.operand(2)));
    if (d.operands() > 3) d.now.more.push_back(d.value(d.operand(3), 4));
    d.now.option = uint8_t(to_wide | from_wide << 1);
    d.now.step = copy;
  } else {
    return false;
  }
  return true;
}

// ---- atomics

enum Change : uint8_t { kAdd, kExchange, kLeast, kMost, kAnd, kOr, kXor, kCompare };

template <class T>
T changed(T old, T by, T other, uint8_t change) {
  if constexpr (std::is_integral_v<T>) {
    if (change == kAnd) return T(old & by);
    if (change == kOr) return T(old | by);
    if (change == kXor) return T(old ^ by);
  }
  switch (change) {
    case kAdd:
      return T(old + by);
    case kLeast:
      return std::min(old, by);
    case kMost:
      return std::max(old, by);
    case kCompare:
      return old == by ? other : old;
    default:
      return by;
  }
}

template <class T>
void atomic(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[1], i.number, i.option & 1);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], sizeof(T));
    const T by = w.at<T>(i.a[2])[lane], other = w.at<T>(i.a[3])[lane];
    T old;
    if (space == Space::shared) {
      expect_shared(w, lane, at[lane], sizeof(T), "an atomic on");
      if (!w.block->shadow.was_written(at[lane])) note(w, lane, "shared memory read before it was written");
      uint8_t* p = w.block->memory.data() + at[lane];
      std::memcpy(&old, p, sizeof old);
      const T now = changed(old, by, other, i.bytes);
      w.block->shadow.note_write(w.index, lane, at[lane], sizeof(T), false);
      std::memcpy(p, &now, sizeof now);
    } else if (space == Space::global) {
      Memory& memory = w.block->launch->memory;
      if (!memory.find(at[lane], sizeof(T))) {
        fault(w, lane, "an atomic on device memory out of bounds: " + memory.outside(at[lane], sizeof(T)));
      }
      memory.save(memory.page_of(at[lane]), at[lane]);
      void* p = reinterpret_cast<void*>(at[lane]);
      std::memcpy(&old, p, sizeof old);
      const T now = changed(old, by, other, i.bytes);
      std::memcpy(p, &now, sizeof now);
    } else {
      fault(w, lane, "an atomic on memory of one thread");
    }
    w.at<T>(i.a[0])[lane] = old;
  }
}

bool atomics(Decoder& d, bool returns) {
  static const std::pair<const char*, Change> names[] = {{"add", kAdd},  {"exch", kExchange}, {"min", kLeast},
                                                         {"max", kMost}, {"and", kAnd},       {"or", kOr},
                                                         {"xor", kXor},  {"cas", kCompare}};
  bool found = false, wide = false;
  for (const auto& [name, change] : names) {
    if (d.has(name)) d.now.bytes = change, found = true;
  }
  if (!found) return false;
  const int bytes = bytes_of(d.type());
  const bool floating = d.type()[0] == 'f';
  const size_t first = returns ? 1 : 0;
  d.now.kind = Kind::atomic;
  d.now.space = named_space(d);
  d.now.a[0] = d.value(returns ? d.operand(0) : "_", bytes);
  d.address(d.operand(first), 1, d.now.number, wide);
  d.now.option = wide;
  d.now.a[2] = d.value(d.operand(first + 1), bytes, floating);
  d.now.a[3] = d.now.bytes == kCompare ? d.value(d.operand(first + 2), bytes, floating) : d.now.a[2];
  if (d.type() == "f32") d.now.step = atomic<float>;
  if (d.type() == "f64") d.now.step = atomic<double>;
  if (d.type() == "s32") d.now.step = atomic<int32_t>;
  if (d.type() == "u32" || d.type() == "b32") d.now.step = atomic<uint32_t>;
  if (d.type() == "s64") d.now.step = atomic<int64_t>;
  if (d.type() == "u64" || d.type() == "b64") d.now.step = atomic<uint64_t>;
  return d.now.step != nullptr;
}

void nothing(Warp&, const Instruction&) {}

}  // namespace

bool decode_memory(Decoder& d) {
  const std::string& op = d.word(0);
  if (op == "ld" || op == "ldu") return access(d, true);
  if (op == "st") return access(d, false);
  if (op == "cp") return copies(d);
  if (op == "atom" || op == "red") return atomics(d, op == "atom");
  if (op == "prefetch" || op == "prefetchu" || op == "discard" || op == "applypriority") {
    d.now.step = nothing;
    return true;
  }
  return false;
}

}  // namespace machine
