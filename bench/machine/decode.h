// From a statement's text to an instruction: registers become offsets, constants registers of their own.
#pragma once

#include <map>
#include <tuple>

#include "machine.h"

namespace machine {

class Decoder {
 public:
  Decoder(const Module& module, const Source& source, Program& program);
  void run();

  // The instruction at hand.
  const Statement* statement = nullptr;
  Instruction now;

  const std::string& word(size_t i) const { return statement->op.at(i); }
  const std::string& type() const { return statement->op.back(); }
  bool has(const std::string& word) const;
  const std::string& operand(size_t i) const;
  size_t operands() const { return statement->operands.size(); }
  [[noreturn]] void unknown() const;

  // Offset of an operand: a register whose lanes have `bytes` (0: a predicate), or a constant of that type.
  uint32_t value(const std::string& text, int bytes, bool floating = false);
  // The same of a register of any width, which it tells.
  uint32_t any(const std::string& text, int& bytes, int wanted);
  // The texts of "{a, b}", or the one of a register; and the offsets of such.
  static Words parts(const std::string& text);
  std::vector<uint32_t> values(const std::string& text, int bytes);
  bool is_register(const std::string& text) const;
  int width(const std::string& name) const;
  // "[base+8]": into a[index], now.number (or second) and, in `wide`, whether the base has 64 bits.
  void address(const std::string& text, int index, int64_t& offset, bool& wide);
  int64_t number(const std::string& text) const;
  // Where the parameter lies that "name+8]" begins with.
  int64_t offset_of_parameter(const std::string& text) const;
  // The predicate in which lanes keep the carry of a sum.
  uint32_t carry();

  // now.step = f of each lane: d = f(a, b, ...)
  template <class R, class... A, class F>
  void map(F) {
    set_operands<R, A...>(std::index_sequence_for<A...>{});
    now.step = &apply<R, F, A...>;
  }

 private:
  template <class T>
  static constexpr bool is_floating = std::is_floating_point_v<T>;
  template <class R, class... A, size_t... I>
  void set_operands(std::index_sequence<I...>) {
    now.a[0] = value(operand(0), sizeof(R));
    ((now.a[1 + I] = value(operand(1 + I), sizeof(A), is_floating<A>)), ...);
  }
  template <class R, class F, class... A>
  static void apply(Warp& w, const Instruction& i) {
    apply_at<R, F, A...>(w, i, std::index_sequence_for<A...>{});
  }
  template <class R, class F, class... A, size_t... I>
  static void apply_at(Warp& w, const Instruction& i, std::index_sequence<I...>) {
    R* d = w.at<R>(i.a[0]);
    const auto from = std::make_tuple(w.at<A>(i.a[1 + I])...);
    each(w.mask, [&](int lane) { d[lane] = F{}(std::get<I>(from)[lane]...); });
  }

  void begin(const Statement& s);
  // Branches and returns, of which the caller knows no step.
  bool decode_flow();
  // Registers of the operands' texts, and how long the result takes.
  void note_dependences();
  uint32_t constant(uint64_t bits, int bytes);
  uint32_t register_of(const std::string& name);

  const Module& module_;
  const Source& source_;
  Program& program_;
  std::unordered_map<std::string, uint32_t> registers_;
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
};

uint32_t latency_of(const Instruction& i);

// Each takes the statement if it is one of its instructions.
bool decode_integer(Decoder& d);
bool decode_float(Decoder& d);
bool decode_convert(Decoder& d);
bool decode_compare(Decoder& d);
bool decode_memory(Decoder& d);
bool decode_copy(Decoder& d);
bool decode_atomic(Decoder& d);
bool decode_warp(Decoder& d);
bool decode_mbarrier(Decoder& d);
bool decode_matrix(Decoder& d);
bool decode_warpgroup(Decoder& d);

}  // namespace machine
