// PTX as text taken apart: kernels, their registers and parameters, and statements whose operands are still text.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace machine {

// What is wrong with a text, or with what a kernel does, in a sentence.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "mul.wide.s32" -> ("mul", "wide", "s32"); "shared::cta" is one word.
using Words = std::vector<std::string>;
Words split(const std::string& text, char separator);
// Operands at commas outside of brackets, without blanks around.
Words operands_of(const std::string& text);
std::string trim(const std::string& text);
// Bytes of a type such as "u32", "bf16x2" or "pred", which counts 0.
int bytes_of(const std::string& type);

struct Statement {
  std::string guard;  // name of a predicate, or ""
  bool negated = false;
  std::string text;  // without the guard
  Words op, operands;
  int place = 0;  // among the kernel's places
};

struct Parameter {
  std::string name;
  int64_t offset, bytes;
};

struct Symbol {
  int64_t offset, bytes;
};

struct Source {
  std::string name;
  std::vector<Parameter> parameters;
  int64_t parameter_bytes = 0;
  std::map<std::string, std::string> registers;  // type of each name, or of each name less its number
  std::vector<Statement> code;
  std::map<std::string, int64_t> labels;
  std::map<std::string, Words> tables;  // of labels
  std::map<std::string, Symbol> local;
  int64_t local_bytes = 0;
  std::vector<std::string> places;  // of the source: "file.py:12:3", the first ""
  int64_t threads = 0;              // most of a block, or 0
};

struct Global {
  int64_t bytes, align;
  std::vector<uint8_t> value;
};

struct Module {
  std::map<std::string, Source> kernels;
  std::map<std::string, Symbol> shared;  // dynamic memory begins after what is static
  int64_t static_shared = 0;
  std::map<std::string, Global> globals;
};

// Throws Fault where the text is no PTX that this reader knows.
Module parse(const std::string& text);

}  // namespace machine
