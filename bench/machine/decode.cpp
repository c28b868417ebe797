#include "decode.h"

#include <cstdlib>

namespace machine {

const char* const kKindNames[] = {"integer",      "float32", "float64",   "half",        "special",       "convert",
                                  "select",       "move",    "parameter", "load_global", "store_global",  "load_shared",
                                  "store_shared", "local",   "copy",      "matrix",      "matrix_memory", "shuffle",
                                  "barrier",      "branch",  "atomic",    "other"};

Decoder::Decoder(const Module& module, const Source& source, Program& program)
    : module_(module), source_(source), program_(program) {
  program_.image.resize(256);  // offset 0 is no register
}

bool Decoder::has(const std::string& word) const {
  for (const std::string& w : statement->op) {
    if (w == word) return true;
  }
  return false;
}

const std::string& Decoder::operand(size_t i) const {
  if (i >= statement->operands.size()) unknown();
  return statement->operands[i];
}

void Decoder::unknown() const {
  throw Fault("machine: kernel " + source_.name + ", " + source_.places[statement->place] +
              ": unknown instruction: " + statement->text.substr(0, 200));
}

int Decoder::width(const std::string& name) const {
  auto found = source_.registers.find(name);
  if (found == source_.registers.end()) {
    size_t end = name.size();
    while (end > 0 && std::isdigit(name[end - 1])) --end;
    found = source_.registers.find(name.substr(0, end));
  }
  if (found == source_.registers.end()) return -1;
  return bytes_of(found->second);
}

bool Decoder::is_register(const std::string& text) const {
  static const std::string specials[] = {"%tid.", "%ntid.", "%ctaid.", "%nctaid.", "%laneid", "%warpid", "%lanemask"};
  for (const std::string& name : specials) {
    if (text.compare(0, name.size(), name) == 0) return true;
  }
  return width(text) >= 0;
}

uint32_t Decoder::register_of(const std::string& name) {
  const auto [found, fresh] = registers_.emplace(name, uint32_t(program_.image.size()));
  if (fresh) {
    const bool special = width(name) < 0;
    const int bytes = special ? 4 : width(name);
    program_.image.resize(program_.image.size() + (bytes ? 32 * bytes : 64), 0xff);
    if (special) program_.specials[name] = found->second;
  }
  return found->second;
}

uint32_t Decoder::constant(uint64_t bits, int bytes) {
  if (bytes > 0 && bytes < 8) bits &= (1ull << 8 * bytes) - 1;
  const auto [found, fresh] = constants_.emplace(std::make_pair(bits, bytes), uint32_t(program_.image.size()));
  if (fresh) {
    const size_t at = program_.image.size();
    const uint32_t lanes = bits ? kEvery : 0;
    program_.image.resize(at + (bytes ? 32 * bytes : 64));
    if (bytes == 0) std::memcpy(program_.image.data() + at, &lanes, 4);
    for (int lane = 0; bytes && lane < 32; ++lane) std::memcpy(program_.image.data() + at + lane * bytes, &bits, bytes);
  }
  return found->second;
}

int64_t Decoder::number(const std::string& text) const {
  char* end = nullptr;
  const int64_t value =
      text[0] == '-' ? std::strtoll(text.c_str(), &end, 0) : int64_t(std::strtoull(text.c_str(), &end, 0));
  while (*end == 'U' || *end == 'L') ++end;
  if (*end != 0 || end == text.c_str()) unknown();
  return value;
}

uint32_t Decoder::value(const std::string& text, int bytes, bool floating) {
  if (text == "_") {
    const auto [found, fresh] = registers_.emplace(text, uint32_t(program_.image.size()));
    if (fresh) program_.image.resize(program_.image.size() + 256);
    return found->second;
  }
  int own = 0;
  const uint32_t at = any(text, own, floating ? -bytes : bytes);
  if (own != bytes) unknown();
  return at;
}

uint32_t Decoder::any(const std::string& text, int& bytes, int wanted) {
  if (is_register(text)) {
    bytes = width(text) < 0 ? 4 : width(text);
    return register_of(text);
  }
  const bool floating = wanted < 0;
  bytes = std::abs(wanted);
  if (text.compare(0, 2, "0f") == 0 || text.compare(0, 2, "0F") == 0) {
    const uint32_t bits = uint32_t(std::strtoul(text.c_str() + 2, nullptr, 16));
    if (bytes == 8) {
      float narrow;
      std::memcpy(&narrow, &bits, 4);
      const double wide = narrow;
      uint64_t out;
      std::memcpy(&out, &wide, 8);
      return constant(out, 8);
    }
    return constant(bits, bytes);
  }
  if (text.compare(0, 2, "0d") == 0 || text.compare(0, 2, "0D") == 0) {
    return constant(std::strtoull(text.c_str() + 2, nullptr, 16), bytes);
  }
  if (const auto found = module_.shared.find(text); found != module_.shared.end()) {
    return constant(uint64_t(found->second.offset), bytes);
  }
  if (const auto found = source_.local.find(text); found != source_.local.end()) {
    return constant(uint64_t(found->second.offset), bytes);
  }
  for (const Parameter& p : source_.parameters) {
    if (p.name == text) return constant(uint64_t(p.offset), bytes);
  }
  if (module_.globals.count(text)) {
    Table& table = program_.globals[text];
    if (!table.memory) {
      const Global& g = module_.globals.at(text);
      table.memory = std::make_shared<std::vector<uint8_t>>(g.bytes + kTableAlignment);
      table.begin = (reinterpret_cast<uint64_t>(table.memory->data()) / kTableAlignment + 1) * kTableAlignment;
      table.bytes = uint64_t(g.bytes);
      std::memcpy(reinterpret_cast<void*>(table.begin), g.value.data(), g.bytes);
    }
    return constant(table.begin, bytes);
  }
  if (floating) unknown();
  return constant(uint64_t(number(text)), bytes);
}

int64_t Decoder::offset_of_parameter(const std::string& text) const {
  const std::string name = trim(text.substr(0, text.find_first_of("+]")));
  for (const Parameter& p : source_.parameters) {
    if (p.name == name) return p.offset;
  }
  unknown();
}

uint32_t Decoder::carry() {
  const auto [found, fresh] = registers_.emplace("carry", uint32_t(program_.image.size()));
  if (fresh) program_.image.resize(program_.image.size() + 64);
  return found->second;
}

Words Decoder::parts(const std::string& text) {
  if (text.empty() || text[0] != '{') return {text};
  return operands_of(text.substr(1, text.size() - 2));
}

std::vector<uint32_t> Decoder::values(const std::string& text, int bytes) {
  std::vector<uint32_t> found;
  for (const std::string& part : parts(text)) found.push_back(value(part, bytes));
  return found;
}

void Decoder::address(const std::string& text, int index, int64_t& offset, bool& wide) {
  if (text.size() < 3 || text[0] != '[') unknown();
  std::string inner = trim(text.substr(1, text.size() - 2));
  offset = 0;
  if (const size_t sign = inner.find_first_of("+-", 1); sign != std::string::npos) {
    const bool plus = inner[sign] == '+';
    const std::string rest = trim(inner.substr(sign + 1));
    offset = plus ? number(rest) : -number(rest);
    inner = trim(inner.substr(0, sign));
  }
  int bytes = 0;
  now.a[index] = any(inner, bytes, 8);
  if (bytes < 4) unknown();
  wide = bytes == 8;
}

void Decoder::begin(const Statement& s) {
  statement = &s;
  now = Instruction();
  now.source = &s;
  if (!s.guard.empty()) {
    now.guard = int32_t(value(s.guard, 0));
    now.negated = s.negated;
  }
}

void Decoder::note_dependences() {
  const std::string& op = word(0);
  const bool no_result = op == "st" || op == "red" || op == "bar" || op == "barrier" || op == "cp" ||
                         op == "stmatrix" || op == "fence" || op == "membar";
  if (now.guard >= 0) now.reads.push_back(uint32_t(now.guard) / 64);
  for (size_t k = 0; k < operands(); ++k) {
    const std::string& text = statement->operands[k];
    for (size_t at = text.find('%'); at != std::string::npos; at = text.find('%', at + 1)) {
      size_t end = at + 1;
      while (end < text.size() && (std::isalnum(text[end]) || std::strchr("_$.", text[end]))) ++end;
      const auto found = registers_.find(text.substr(at, end - at));
      if (found == registers_.end()) continue;
      const bool result = k == 0 && !no_result;
      (result ? now.writes : now.reads).push_back(found->second / 64);
      // Of 64 bits, or a half of them.
      now.tracks |= result && (width(found->first) == 8 || (op == "mov" && type() == "b64"));
    }
  }
  now.latency = latency_of(now);
}

bool Decoder::decode_flow() {
  const std::string& op = word(0);
  if (op == "bra") {
    const auto label = source_.labels.find(operand(0));
    if (label == source_.labels.end()) unknown();
    now.flow = Flow::branch;
    now.number = label->second;
  } else if (op == "brx") {
    const auto table = source_.tables.find(operand(1));
    if (table == source_.tables.end()) unknown();
    now.flow = Flow::table;
    now.a[0] = value(operand(0), 4);
    now.number = int64_t(program_.tables.size());
    program_.tables.emplace_back();
    for (const std::string& name : table->second) {
      program_.tables.back().push_back(uint32_t(source_.labels.at(name)));
    }
  } else if (op == "ret" || op == "exit") {
    now.flow = Flow::leave;
  } else {
    return false;
  }
  now.kind = Kind::branch;
  return true;
}

void Decoder::run() {
  for (const Statement& s : source_.code) {
    begin(s);
    if (!decode_flow()) {
      const bool known = decode_integer(*this) || decode_float(*this) || decode_convert(*this) ||
                         decode_compare(*this) || decode_memory(*this) || decode_copy(*this) || decode_atomic(*this) ||
                         decode_warp(*this) || decode_mbarrier(*this) || decode_matrix(*this) ||
                         decode_warpgroup(*this);
      if (!known) unknown();
      note_dependences();
    }
    program_.code.push_back(now);
  }
}

Program prepare(const Module& module, const std::string& kernel) {
  const auto found = module.kernels.find(kernel);
  if (found == module.kernels.end()) throw Fault("machine: the module has no kernel " + kernel);
  Program program;
  program.module = &module;
  program.source = &found->second;
  Decoder(module, found->second, program).run();
  return program;
}

}  // namespace machine
