// Loads and stores, and what is checked of every access.
#include "access.h"

namespace machine {

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
  expect_device(w, lane, address, bytes, "a read of");
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
  expect_device(w, lane, address, bytes, "a write to");
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

namespace {

uint8_t* local_memory(Warp& w, int lane, uint64_t address, int bytes) {
  const int64_t most = w.block->launch->program->source->local_bytes;
  if (address + bytes > uint64_t(most)) {
    fault(w, lane,
          "the stack is overrun: " + std::to_string(bytes) + " bytes at byte " + std::to_string(int64_t(address)) +
              " of " + std::to_string(most));
  }
  return w.local.data() + uint64_t(lane) * most + address;
}

const uint8_t* parameter_memory(Warp& w, int lane, uint64_t address, int bytes) {
  const std::vector<uint8_t>& parameters = w.block->launch->parameters;
  if (address + bytes > parameters.size()) {
    fault(w, lane,
          "parameters are overrun: " + std::to_string(bytes) + " bytes at byte " + std::to_string(int64_t(address)) +
              " of " + std::to_string(parameters.size()));
  }
  return parameters.data() + address;
}

void read_memory(Warp& w, int lane, Space space, uint64_t address, int bytes, void* to) {
  if (space == Space::global) return read_global(w, lane, address, bytes, to);
  if (space == Space::shared) return read_shared(w, lane, address, bytes, to);
  if (space == Space::local) {
    std::memcpy(to, local_memory(w, lane, address, bytes), bytes);
    return;
  }
  std::memcpy(to, parameter_memory(w, lane, address, bytes), bytes);
}

void write_memory(Warp& w, int lane, Space space, uint64_t address, int bytes, const void* from) {
  if (space == Space::global) return write_global(w, lane, address, bytes, from);
  if (space == Space::shared) return write_shared(w, lane, address, bytes, from);
  if (space == Space::parameter) fault(w, lane, "a write to parameters");
  std::memcpy(local_memory(w, lane, address, bytes), from, bytes);
}

// The lanes of an access that went to memory whose traffic is counted.
struct Touched {
  uint32_t shared = 0, global = 0;

  void add(Space space, int lane) {
    if (space == Space::shared) shared |= 1u << lane;
    if (space == Space::global) global |= 1u << lane;
  }
  void count(Warp& w, const uint64_t* address, int bytes, bool write) const {
    count_shared(w, address, shared, bytes);
    count_global(w, address, global, bytes, write);
  }
};

// option: 1 the base has 64 bits, 2 values are signed; second: bytes of a register.
void load(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[0], i.number, i.option & 1);
  const int all = int(i.bytes * i.more.size());
  Touched touched;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], all);
    uint8_t value[64];
    read_memory(w, lane, space, at[lane], all, value);
    touched.add(space, lane);
    for (size_t k = 0; k < i.more.size(); ++k) {
      uint64_t part = 0;
      std::memcpy(&part, value + k * i.bytes, i.bytes);
      if (i.option & 2) part = uint64_t(int64_t(part << (64 - 8 * i.bytes)) >> (64 - 8 * i.bytes));
      std::memcpy(w.file.data() + i.more[k] + size_t(i.second) * lane, &part, i.second);
    }
  }
  touched.count(w, at.data(), all, false);
}

// The common case: every lane reads the same parameter.
template <class T>
void load_parameter(Warp& w, const Instruction& i) {
  for (size_t k = 0; k < i.more.size(); ++k) {
    const uint64_t address = uint64_t(i.number) + k * sizeof(T);
    T value;
    std::memcpy(&value, parameter_memory(w, __builtin_ctz(w.mask), address, sizeof(T)), sizeof(T));
    T* to = w.at<T>(i.more[k]);
    each(w.mask, [&](int lane) { to[lane] = value; });
  }
}

void store(Warp& w, const Instruction& i) {
  auto at = addresses(w, i.a[0], i.number, i.option & 1);
  const int all = int(i.bytes * i.more.size());
  Touched touched;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(w.mask >> lane & 1)) continue;
    const Space space = space_of(i.space, at[lane]);
    expect_aligned(w, lane, at[lane], all);
    uint8_t value[64];
    for (size_t k = 0; k < i.more.size(); ++k) {
      std::memcpy(value + k * i.bytes, w.file.data() + i.more[k] + size_t(i.second) * lane, i.bytes);
    }
    touched.add(space, lane);
    write_memory(w, lane, space, at[lane], all, value);
  }
  touched.count(w, at.data(), all, true);
}

bool access(Decoder& d, bool reads) {
  const std::string& values = d.operand(reads ? 0 : 1);
  bool wide = false;
  d.now.space = named_space(d);
  d.address(d.operand(reads ? 1 : 0), 0, d.now.number, wide);
  d.now.bytes = uint8_t(bytes_of(d.type()));
  const Words parts = Decoder::parts(values);
  if (d.now.bytes * parts.size() > 16) return false;
  d.now.option = uint8_t(wide | (d.type()[0] == 's' ? 2 : 0));
  int own = 0;
  for (const std::string& part : parts) {
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

void nothing(Warp&, const Instruction&) {}

}  // namespace

bool decode_memory(Decoder& d) {
  const std::string& op = d.word(0);
  if (op == "ld" || op == "ldu") return access(d, true);
  if (op == "st") return access(d, false);
  if (op == "prefetch" || op == "prefetchu" || op == "discard" || op == "applypriority") {
    d.now.step = nothing;
    return true;
  }
  return false;
}

}  // namespace machine
