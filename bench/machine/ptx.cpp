#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

namespace machine {
namespace {

bool word_character(char c) { return std::isalnum(c) || c == '_' || c == '$' || c == '%'; }

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// What a declaration such as ".align 16 .b8 name[64]" says.
struct Declaration {
  int64_t align = 0, element = 0, bytes = 0;
  std::string name;
};
Declaration declaration(const std::string& text) {
  Declaration d;
  Words words;
  std::string spaced;
  for (char c : text) spaced += c == '\t' || c == '\n' ? ' ' : c;
  for (const std::string& word : split(spaced, ' ')) {
    if (!word.empty()) words.push_back(word);
  }
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == ".align") {
      d.align = std::atoll(words[++i].c_str());
    } else if (word.size() > 2 && word[0] == '.' && std::strchr("bsufp", word[1]) && std::isdigit(word.back()) &&
               word.find(':') == std::string::npos) {
      d.element = bytes_of(word.substr(1));
    } else if (word[0] != '.' && word_character(word[0])) {
      d.name = word;
    }
  }
  d.bytes = d.element;
  if (const size_t bracket = d.name.find('['); bracket != std::string::npos) {
    d.bytes = d.element * std::atoll(d.name.c_str() + bracket + 1);
    d.name.resize(bracket);
  }
  d.align = std::max(d.align, d.element);
  return d;
}

class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}

  Module read() {
    files();
    std::string head;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (comment()) continue;
      if (c == '.' && text_.compare(at_, 8, ".section") == 0) {
        skip_block();
        head.clear();
      } else if (c == ';') {
        ++at_;
        global(head);
        head.clear();
      } else if (c == '\n' && directive(head)) {
        ++at_;
        head.clear();
      } else if (c == '(' && head.find(".entry") != std::string::npos) {
        kernel(head);
        head.clear();
      } else if (c == '(' && head.find(".func") != std::string::npos) {
        skip_block();
        head.clear();
      } else {
        head += c;
        ++at_;
      }
    }
    for (auto& [name, symbol] : module_.shared) {
      if (symbol.offset < 0) symbol.offset = module_.static_shared;
    }
    return std::move(module_);
  }

 private:
  // The table of files stands at the end of a text.
  void files() {
    for (size_t at = text_.find(".file"); at != std::string::npos; at = text_.find(".file", at + 1)) {
      const size_t end = text_.find('\n', at);
      const std::string line = text_.substr(at, end - at);
      const size_t open = line.rfind('"', line.rfind('"') - 1);
      if (open == std::string::npos) continue;
      std::string name = line.substr(open + 1, line.rfind('"') - open - 1);
      name = name.substr(name.rfind('/') == std::string::npos ? 0 : name.rfind('/') + 1);
      files_[std::atoi(line.c_str() + 5)] = name;
    }
  }

  bool comment() {
    if (text_.compare(at_, 2, "//") == 0) {
      at_ = text_.find('\n', at_);
      if (at_ == std::string::npos) at_ = text_.size();
      return true;
    }
    if (text_.compare(at_, 2, "/*") == 0) {
      at_ = text_.find("*/", at_) + 2;
      return true;
    }
    return false;
  }

  static bool directive(const std::string& head) {
    const std::string line = trim(head);
    for (const char* name : {".version", ".target", ".address_size", ".file"}) {
      if (line.compare(0, std::strlen(name), name) == 0) return true;
    }
    // cuobjdump's own lines about the file
    return !line.empty() && line[0] != '.';
  }

  void skip_block() {
    at_ = text_.find_first_of("{;", at_);
    if (at_ == std::string::npos || text_[at_] == ';') {
      at_ = at_ == std::string::npos ? text_.size() : at_ + 1;
      return;
    }
    int depth = 0;
    do {
      depth += (text_[at_] == '{') - (text_[at_] == '}');
      ++at_;
    } while (depth > 0 && at_ < text_.size());
  }

  void global(const std::string& head) {
    const std::string line = trim(head);
    const size_t equals = line.find('=');
    if (line.find(".shared") != std::string::npos) {
      shared(line);
    } else if (line.find(".global") != std::string::npos || line.find(".const") != std::string::npos) {
      std::string plain = line.substr(0, equals);
      if (const size_t attribute = plain.find(".attribute("); attribute != std::string::npos) {
        plain.erase(attribute, plain.find(')', attribute) - attribute + 1);
      }
      const Declaration d = declaration(plain);
      Global g{std::max(d.bytes, d.element), d.align, {}};
      g.value.resize(g.bytes);
      if (equals != std::string::npos) {
        std::string values = trim(line.substr(equals + 1));
        if (values[0] == '{') values = values.substr(1, values.size() - 2);
        int64_t i = 0;
        for (const std::string& value : operands_of(values)) {
          const uint64_t bits = std::strtoull(value.c_str(), nullptr, 0);
          std::memcpy(g.value.data() + d.element * i++, &bits, d.element);
        }
      }
      module_.globals[d.name] = std::move(g);
    }
  }

  void shared(const std::string& line) {
    const Declaration d = declaration(line);
    if (module_.shared.count(d.name)) return;
    if (d.bytes == 0) {
      module_.shared[d.name] = {-1, 0};
      return;
    }
    module_.static_shared = round_up(module_.static_shared, d.align);
    module_.shared[d.name] = {module_.static_shared, d.bytes};
    module_.static_shared += d.bytes;
  }

  void kernel(const std::string& head) {
    Source k;
    k.name = trim(head.substr(head.find(".entry") + 6));
    k.places.emplace_back();
    const size_t close = text_.find(')', at_);
    for (const std::string& text : operands_of(text_.substr(at_ + 1, close - at_ - 1))) {
      std::string plain = text;
      int64_t align = 0;
      if (const size_t pointer = plain.find(".ptr"); pointer != std::string::npos) {
        const size_t word = plain.find_last_of(" \t");
        plain = plain.substr(0, pointer) + plain.substr(word);
      }
      const Declaration d = declaration(plain);
      align = std::max<int64_t>({align, d.align, 1});
      k.parameter_bytes = round_up(k.parameter_bytes, align);
      k.parameters.push_back({d.name, k.parameter_bytes, d.bytes});
      k.parameter_bytes += d.bytes;
    }
    const size_t open = text_.find('{', close);
    for (const char* name : {".reqntid", ".maxntid"}) {
      const size_t found = text_.find(name, close);
      if (found < open) k.threads = std::atoll(text_.c_str() + found + std::strlen(name));
    }
    at_ = open + 1;
    body(k);
    module_.kernels[k.name] = std::move(k);
  }

  void body(Source& k) {
    std::string piece;
    int place = 0, depth = 1, inner = 0;  // braces of scopes, and those of operands
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (comment()) continue;
      const bool begins = piece.find_first_not_of(" \t\r\n") == std::string::npos;
      if (begins && c == '.' && text_.compare(at_, 4, ".loc") == 0 && std::isspace(text_[at_ + 4])) {
        place = location(k);
        piece.clear();
      } else if (begins && c == '{') {
        ++depth;
        ++at_;
      } else if (c == '}' && (begins || inner == 0)) {
        if (!begins) flush(k, piece, place);
        ++at_;
        if (--depth == 0) return;
      } else if (c == ';' && inner == 0) {
        ++at_;
        flush(k, piece, place);
      } else if (c == ':' && text_[at_ + 1] != ':' && label(k, piece)) {
        ++at_;
      } else {
        inner += (c == '{') - (c == '}');
        piece += c;
        ++at_;
      }
    }
    throw Fault("machine: kernel " + k.name + " does not end");
  }

  // Whether the piece before a colon is a label, which it takes; a table of labels goes on as a statement.
  bool label(Source& k, std::string& piece) {
    const std::string name = trim(piece);
    if (name.empty() || name[0] == '.' || name[0] == '@') return false;
    for (char c : name) {
      if (!word_character(c)) return false;
    }
    k.labels[name] = int64_t(k.code.size());
    label_ = name;
    piece.clear();
    return true;
  }

  int location(Source& k) {
    const size_t end = text_.find('\n', at_);
    const std::string line = text_.substr(at_, end - at_);
    at_ = end;
    std::string name;
    if (const size_t said = line.find("// "); said != std::string::npos) {
      name = trim(line.substr(said + 3));
    } else {
      char* rest = nullptr;
      const int file = int(std::strtol(line.c_str() + 4, &rest, 10));
      const long row = std::strtol(rest, &rest, 10);
      name = files_[file] + ":" + std::to_string(row) + ":" + std::to_string(std::strtol(rest, nullptr, 10));
    }
    k.places.push_back(name);
    return int(k.places.size()) - 1;
  }

  void flush(Source& k, std::string& piece, int place) {
    std::string text = trim(piece);
    piece.clear();
    if (text.empty()) return;
    for (char& c : text) c = c == '\t' || c == '\n' || c == '\r' ? ' ' : c;
    if (text[0] == '.') return declare(k, text);
    Statement s;
    s.place = place;
    if (text[0] == '@') {
      const size_t end = text.find(' ');
      s.negated = text[1] == '!';
      s.guard = text.substr(1 + s.negated, end - 1 - s.negated);
      text = trim(text.substr(end));
    }
    s.text = text;
    const size_t end = text.find(' ');
    s.op = split(text.substr(0, end), '.');
    if (end != std::string::npos) s.operands = operands_of(text.substr(end));
    k.code.push_back(std::move(s));
  }

  void declare(Source& k, const std::string& text) {
    if (text.compare(0, 4, ".reg") == 0) {
      const std::string rest = trim(text.substr(4));
      const size_t end = rest.find(' ');
      const std::string type = rest.substr(1, end - 1);
      for (std::string name : operands_of(rest.substr(end))) {
        if (const size_t count = name.find('<'); count != std::string::npos) name.resize(count);
        const auto [known, fresh] = k.registers.emplace(name, type);
        if (!fresh && known->second != type) throw Fault("machine: register " + name + " has two types");
      }
    } else if (text.compare(0, 6, ".local") == 0) {
      const Declaration d = declaration(text.substr(6));
      k.local_bytes = round_up(k.local_bytes, d.align);
      k.local[d.name] = {k.local_bytes, d.bytes};
      k.local_bytes += d.bytes;
    } else if (text.compare(0, 7, ".shared") == 0) {
      shared(text);
    } else if (text.compare(0, 14, ".branchtargets") == 0) {
      k.tables[label_] = operands_of(text.substr(14));
    } else if (text.compare(0, 7, ".pragma") != 0) {
      throw Fault("machine: kernel " + k.name + ": unknown directive " + text.substr(0, 60));
    }
  }

  const std::string& text_;
  size_t at_ = 0;
  std::string label_;
  std::map<int, std::string> files_;
  Module module_;
};

}  // namespace

Module parse(const std::string& text) { return Reader(text).read(); }

}  // namespace machine
