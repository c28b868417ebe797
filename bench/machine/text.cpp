// Words of a text.
#include <cctype>
#include <cstdlib>

#include "ptx.h"

namespace machine {

Words split(const std::string& text, char separator) {
  Words words(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == separator) {
      words.emplace_back();
    } else {
      words.back() += text[i];
    }
  }
  return words;
}

std::string trim(const std::string& text) {
  const char* blanks = " \t\r\n";
  const size_t first = text.find_first_not_of(blanks);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

Words operands_of(const std::string& text) {
  Words words;
  int depth = 0;
  std::string word;
  for (char c : text) {
    if (c == '{' || c == '[' || c == '(') ++depth;
    if (c == '}' || c == ']' || c == ')') --depth;
    if (c == ',' && depth == 0) {
      words.push_back(trim(word));
      word.clear();
    } else {
      word += c;
    }
  }
  if (!trim(word).empty()) words.push_back(trim(word));
  return words;
}

int bytes_of(const std::string& type) {
  if (type == "pred") return 0;
  size_t i = 0;
  while (i < type.size() && !std::isdigit(type[i])) ++i;
  const int bits = std::atoi(type.c_str() + i);
  const bool pair = type.size() > 2 && type.compare(type.size() - 2, 2, "x2") == 0;
  if (bits % 8 || bits == 0) throw Fault("machine: no type ." + type);
  return bits / 8 * (pair ? 2 : 1);
}

}  // namespace machine
