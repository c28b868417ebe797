// Matrix instructions: ldmatrix and stmatrix, mma.sync, and Hopper's wgmma with descriptors and swizzles.
//
// The sums of tensor cores truncate: a few products and the accumulator are aligned to the largest of them, cut off a
// bit or two below float32's last, added, and cut off again. How many at once and where is as measured by Fasi, Higham,
// Mikaitis and Pranesh (2021) and by Khattak and Mikaitis (arXiv:2512.07004).
#include <cmath>

#include "decode.h"
#include "numbers.h"

namespace machine {
namespace {

enum Element : uint8_t { kHalf, kBfloat, kTf32 };

int size_of(uint8_t element) { return element == kTf32 ? 4 : 2; }

double to_value(uint32_t bits, uint8_t element) {
  if (element == kTf32) return to_float(bits & 0xffffe000u);
  return element == kHalf ? Half{uint16_t(bits)}.value() : Bfloat{uint16_t(bits)}.value();
}

struct Unit {
  int at_once, extra;  // products of one sum, bits kept below float32's last
};
Unit unit_of(int architecture, uint8_t element) {
  if (architecture < 90) return {element == kTf32 ? 4 : 8, 1};
  return {element == kTf32 ? 8 : 16, 2};
}

constexpr int kMostColumns = 256;

// c (columns) += a (depth) b (depth, columns), of one row.
void multiply_row(double* c, const double* a, const double* b, int depth, int columns, Unit unit) {
  double largest[kMostColumns], sum[kMostColumns], quantum[kMostColumns], inverse[kMostColumns];
  for (int from = 0; from < depth; from += unit.at_once) {
    const int to = std::min(depth, from + unit.at_once);
    bool finite = true;
    for (int n = 0; n < columns; ++n) largest[n] = std::fabs(c[n]);
    for (int k = from; k < to; ++k) {
      for (int n = 0; n < columns; ++n) {
        const double term = std::fabs(a[k] * b[k * columns + n]);
        largest[n] = largest[n] < term ? term : largest[n];
      }
    }
    for (int n = 0; n < columns; ++n) {
      uint64_t bits;
      std::memcpy(&bits, &largest[n], 8);
      const int exponent = int(bits >> 52) - 23 - unit.extra;
      const uint64_t up = uint64_t(std::max(exponent, 1)) << 52, down = uint64_t(2046 - std::max(exponent, 1)) << 52;
      std::memcpy(&quantum[n], &up, 8);
      std::memcpy(&inverse[n], &down, 8);
      sum[n] = std::trunc(c[n] * inverse[n]);
      // Also where an operand is NaN, which no comparison above keeps.
      double all = c[n];
      for (int k = from; k < to; ++k) all += a[k] * b[k * columns + n];
      finite = finite && std::isfinite(all);
    }
    for (int k = from; k < to; ++k) {
      for (int n = 0; n < columns; ++n) sum[n] += std::trunc(a[k] * b[k * columns + n] * inverse[n]);
    }
    for (int n = 0; n < columns; ++n) {
      double out = sum[n] * quantum[n];
      if (!finite) {
        double all = c[n];
        for (int k = from; k < to; ++k) all += a[k] * b[k * columns + n];
        if (!std::isfinite(all)) out = all;
      }
      c[n] = toward_zero(out);
    }
  }
}

// ---- matrices of 8 x 8 halves in shared memory

std::array<uint64_t, 32> row_addresses(Warp& w, const Instruction& i) {
  std::array<uint64_t, 32> out;
  for (int lane = 0; lane < 32; ++lane) {
    out[lane] = i.option & 1 ? w.at<uint64_t>(i.a[0])[lane] + uint64_t(i.number)
                             : w.at<uint32_t>(i.a[0])[lane] + uint32_t(i.number);
    if (i.space == Space::generic && out[lane] >= kSharedWindow) out[lane] -= kSharedWindow;
    if (lane < 8 * int(i.more.size()) && out[lane] % 16) fault(w, lane, "misaligned: a matrix's row of 16 bytes");
  }
  return out;
}

void load_matrices(Warp& w, const Instruction& i) {
  const auto rows = row_addresses(w, i);
  for (size_t m = 0; m < i.more.size(); ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) read_shared(w, int(8 * m) + r, rows[8 * m + r], 16, matrix[r]);
    uint32_t* to = w.at<uint32_t>(i.more[m]);
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      to[lane] = i.option & 2 ? matrix[c][r] | uint32_t(matrix[c + 1][r]) << 16
                              : matrix[r][c] | uint32_t(matrix[r][c + 1]) << 16;
    }
  }
  count_matrix_rows(w, rows.data(), int(i.more.size()));
}

void store_matrices(Warp& w, const Instruction& i) {
  const auto rows = row_addresses(w, i);
  for (size_t m = 0; m < i.more.size(); ++m) {
    uint16_t matrix[8][8];
    const uint32_t* from = w.at<uint32_t>(i.more[m]);
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint16_t low = uint16_t(from[lane]), high = uint16_t(from[lane] >> 16);
      if (i.option & 2) {
        matrix[c][r] = low, matrix[c + 1][r] = high;
      } else {
        matrix[r][c] = low, matrix[r][c + 1] = high;
      }
    }
    for (int r = 0; r < 8; ++r) write_shared(w, int(8 * m) + r, rows[8 * m + r], 16, matrix[r]);
  }
  count_matrix_rows(w, rows.data(), int(i.more.size()));
}

bool matrix_memory(Decoder& d, bool loads) {
  if (!d.has("m8n8") || d.type() != "b16") return false;
  bool wide = false;
  d.address(d.operand(loads ? 1 : 0), 0, d.now.number, wide);
  d.now.more = d.values(d.operand(loads ? 0 : 1), 4);
  d.now.option = uint8_t(wide | (d.has("trans") ? 2 : 0));
  d.now.space = d.has("shared") || d.has("shared::cta") ? Space::shared : Space::generic;
  d.now.flow = Flow::whole;
  d.now.kind = Kind::matrix_memory;
  d.now.step = loads ? load_matrices : store_matrices;
  return true;
}

// ---- mma.sync: d, a, b, c in `more`, one after the other; number: the depth

void multiply(Warp& w, const Instruction& i) {
  const int depth = int(i.number), halves = 4 / size_of(i.option);  // of a register
  const int n_a = depth / 8 * (halves == 2 ? 2 : 4), n_b = n_a / 2;
  const uint32_t *d = i.more.data(), *a = d + 4, *b = a + n_a, *c = b + n_b;
  double left[16][16], right[16 * 8], sum[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int k = 0; k < n_a; ++k) {
      const uint32_t bits = w.at<uint32_t>(a[k])[lane];
      const int row = g + 8 * (k % 2);
      if (halves == 1) left[row][q + 4 * (k / 2)] = to_value(bits, i.option);
      for (int h = 0; halves == 2 && h < 2; ++h) {
        left[row][2 * q + h + 8 * (k / 2)] = to_value(bits >> 16 * h, i.option);
      }
    }
    for (int k = 0; k < n_b; ++k) {
      const uint32_t bits = w.at<uint32_t>(b[k])[lane];
      if (halves == 1) right[(q + 4 * k) * 8 + g] = to_value(bits, i.option);
      for (int h = 0; halves == 2 && h < 2; ++h) {
        right[(2 * q + h + 8 * k) * 8 + g] = to_value(bits >> 16 * h, i.option);
      }
    }
    for (int k = 0; k < 4; ++k) sum[g + 8 * (k / 2)][2 * q + k % 2] = w.at<float>(c[k])[lane];
  }
  const Unit unit = unit_of(w.block->launch->architecture, i.option);
  for (int row = 0; row < 16; ++row) multiply_row(sum[row], left[row], right, depth, 8, unit);
  for (int lane = 0; lane < 32; ++lane) {
    for (int k = 0; k < 4; ++k) w.at<float>(d[k])[lane] = float(sum[lane / 4 + 8 * (k / 2)][lane % 4 * 2 + k % 2]);
  }
  w.block->launch->counts.flops += uint64_t(2 * 16 * 8) * depth;
}

bool element_of(const std::string& type, uint8_t& element) {
  element = type == "f16" ? kHalf : type == "bf16" ? kBfloat : kTf32;
  return type == "f16" || type == "bf16" || type == "tf32";
}

bool matrix_multiply(Decoder& d) {
  const Words& op = d.statement->op;
  const size_t n = op.size();
  if (n < 9 || op[1] != "sync" || !d.has("row") || !d.has("col")) return false;
  if (op[n - 4] != "f32" || op[n - 1] != "f32" || op[n - 2] != op[n - 3]) return false;
  if (!element_of(op[n - 2], d.now.option)) return false;
  const bool tf32 = d.now.option == kTf32;
  d.now.number = d.has("m16n8k16") ? 16 : d.has("m16n8k8") ? 8 : 0;
  if (d.now.number == 0 || (tf32 && d.now.number == 16)) return false;
  const size_t n_a = size_t(d.now.number) / (tf32 ? 2 : 4);
  const size_t parts[] = {4, n_a, n_a / 2, 4};
  for (size_t k = 0; k < 4; ++k) {
    const auto found = d.values(d.operand(k), 4);
    if (found.size() != parts[k]) return false;
    d.now.more.insert(d.now.more.end(), found.begin(), found.end());
  }
  d.now.flow = Flow::whole;
  d.now.kind = Kind::matrix;
  d.now.step = multiply;
  return true;
}

// ---- wgmma

// An operand in shared memory: `rows` rows of 32 bytes along the depth, in pieces of 16 bytes.
struct Operand {
  uint64_t start, leading, stride;
  int mode, rows;
  bool transposed;

  Operand(uint64_t descriptor, int rows, bool transposed) : rows(rows), transposed(transposed) {
    start = (descriptor & 0x3fff) << 4;
    leading = (descriptor >> 16 & 0x3fff) << 4;
    stride = (descriptor >> 32 & 0x3fff) << 4;
    mode = int(descriptor >> 62);
  }
  int pieces() const { return 2 * rows; }
  // Straight, a piece is half of a row; transposed, eight rows' halves at one depth.
  uint64_t piece(int k) const {
    static const int widths[] = {16, 128, 64, 32}, masks[] = {0, 7, 3, 1};
    const int width = widths[mode];
    uint64_t offset;
    if (!transposed) {
      const int row = k / 2, half = k % 2;
      offset = row / 8 * stride + uint64_t(row % 8) * width + (mode ? uint64_t(16 * half) : half * leading);
    } else {
      const int depth = k % 16, group = k / 16, groups = width / 16;
      offset = group / groups * leading + depth / 8 * stride + uint64_t(depth % 8) * width + 16 * (group % groups);
    }
    const uint64_t at = start + offset;
    return at ^ ((at >> 7 & masks[mode]) << 4);
  }
};

// Reads an operand's bytes in the order of its pieces.
void read_operand(Warp& w, const Operand& operand, int first, int n, std::vector<uint8_t>& to) {
  for (int k = first; k < first + n; ++k) {
    const uint64_t at = operand.piece(k);
    to.resize(to.size() + 16);
    read_shared(w, 0, at, 16, to.data() + to.size() - 16);
    if (!w.block->shadow.seen_by_proxy(w.index, at)) {
      note(w, 0, "wgmma reads shared memory that was written with no fence.proxy.async since");
    }
  }
}

double element_at(const uint8_t* bytes, const Operand& operand, int row, int depth, uint8_t element) {
  const int size = size_of(element);
  const uint8_t* at;
  if (!operand.transposed) {
    at = bytes + 32 * row + size * depth;
  } else {
    at = bytes + 16 * (16 * (row / 8) + depth) + size * (row % 8);
  }
  uint32_t bits = 0;
  std::memcpy(&bits, at, size);
  return to_value(bits, element);
}

// option: element, 4: a is in shared memory, 8: a transposed, 16: b transposed. number: columns; second: parts of d.
Operand operand_a(const Instruction& i, uint64_t descriptor) { return {descriptor, 64, (i.option & 8) != 0}; }
Operand operand_b(const Instruction& i, uint64_t descriptor) {
  return {descriptor, int(i.number), (i.option & 16) != 0};
}

std::vector<uint8_t> operands_now(Warp& w, const Product& p) {
  std::vector<uint8_t> bytes;
  const Instruction& i = *p.instruction;
  if (i.option & 4) read_operand(w, operand_a(i, p.a), 0, 128, bytes);
  read_operand(w, operand_b(i, p.b), 0, 2 * int(i.number), bytes);
  return bytes;
}

void issue(Warp& w, const Instruction& i) {
  if (!w.fenced) fault(w, 0, "wgmma with no wgmma.fence since the last wait or the begin");
  if (w.block->warps.size() % 4) fault(w, 0, "wgmma in a block whose warps are no multiple of four");
  Product p{&i, -1, i.option & 4 ? w.at<uint64_t>(i.a[0])[0] : 0, w.at<uint64_t>(i.a[1])[0], {}};
  if ((p.a | p.b) >> 49 & 7) fault(w, 0, "wgmma with a base offset, which the machine does not know");
  p.before = operands_now(w, p);
  w.flying.insert(w.flying.end(), i.more.begin(), i.more.begin() + i.second);
  Counts& counts = w.block->launch->counts;
  counts.flops += uint64_t(2 * 16 * 32 / size_of(i.option & 3)) * uint64_t(i.number);
  if (w.index % 4 == 0) {
    ++counts.shared_accesses;
    counts.shared_wavefronts += p.before.size() / 128;
    counts.shared_least += p.before.size() / 128;
  }
  w.products.push_back(std::move(p));
}

void finish(Warp& w, const Product& p) {
  const Instruction& i = *p.instruction;
  const uint8_t element = i.option & 3;
  const int depth = 32 / size_of(element), columns = int(i.number), first = 16 * (w.index % 4);
  const std::vector<uint8_t> bytes = operands_now(w, p);
  if (bytes != p.before) note(w, 0, "wgmma's operands in shared memory changed before wgmma.wait_group");
  const uint8_t* b_bytes = bytes.data() + (i.option & 4 ? 128 * 16 : 0);
  double left[16][16], sum[16][kMostColumns];
  std::vector<double> right(size_t(depth) * columns);
  const Operand b = operand_b(i, p.b);
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < columns; ++n) right[size_t(k) * columns + n] = element_at(b_bytes, b, n, k, element);
  }
  if (i.option & 4) {
    const Operand a = operand_a(i, p.a);
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < depth; ++k) left[row][k] = element_at(bytes.data(), a, first + row, k, element);
    }
  }
  const uint32_t accumulate = *w.at<uint32_t>(i.a[2]);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int k = 0; !(i.option & 4) && k < 4; ++k) {
      const uint32_t bits = w.at<uint32_t>(i.more[size_t(i.second) + k])[lane];
      const int row = g + 8 * (k % 2);
      if (element == kTf32) left[row][q + 4 * (k / 2)] = to_value(bits, element);
      for (int h = 0; element != kTf32 && h < 2; ++h) {
        left[row][2 * q + h + 8 * (k / 2)] = to_value(bits >> 16 * h, element);
      }
    }
    for (int k = 0; k < int(i.second); ++k) {
      const double before = accumulate & 1 ? double(w.at<float>(i.more[k])[lane]) : 0.0;
      sum[g + 8 * (k / 2 % 2)][8 * (k / 4) + 2 * q + k % 2] = before;
    }
  }
  const Unit unit = unit_of(w.block->launch->architecture, element);
  for (int row = 0; row < 16; ++row) multiply_row(sum[row], left[row], right.data(), depth, columns, unit);
  for (int lane = 0; lane < 32; ++lane) {
    for (int k = 0; k < int(i.second); ++k) {
      const int row = lane / 4 + 8 * (k / 2 % 2), column = 8 * (k / 4) + 2 * (lane % 4) + k % 2;
      w.at<float>(i.more[k])[lane] = float(sum[row][column]);
    }
  }
}

void fence(Warp& w, const Instruction&) { w.fenced = true; }
void end_products(Warp& w, const Instruction&) {
  for (Product& p : w.products) {
    if (p.group < 0) p.group = w.product_groups;
  }
  ++w.product_groups;
}
void wait_products(Warp& w, const Instruction& i) { finish_products(w, int(i.number)); }

bool warpgroup(Decoder& d) {
  d.now.flow = Flow::whole;
  d.now.kind = Kind::other;
  d.now.asynchronous = true;
  if (d.word(1) == "fence") return d.now.step = fence, true;
  if (d.word(1) == "commit_group") return d.now.step = end_products, true;
  if (d.word(1) == "wait_group") {
    d.now.number = d.number(d.operand(0));
    return d.now.step = wait_products, true;
  }
  if (d.word(1) != "mma_async") return false;
  const Words& op = d.statement->op;
  uint8_t element = 0;
  if (!element_of(op.back(), element) || op[op.size() - 2] != op.back() || op[op.size() - 3] != "f32") return false;
  const std::string& shape = op[4];  // m64nNkK
  const size_t at = shape.find('n'), depth = shape.find('k');
  if (shape.compare(0, 3, "m64") != 0 || std::stoi(shape.substr(depth + 1)) != 32 / size_of(element)) return false;
  d.now.number = std::stoi(shape.substr(at + 1));
  d.now.more = d.values(d.operand(0), 4);
  d.now.second = int64_t(d.now.more.size());
  if (d.now.second != d.now.number / 2 || d.now.number > kMostColumns) return false;
  const bool in_registers = d.operand(1)[0] == '{';
  d.now.option = uint8_t(element | (in_registers ? 0 : 4));
  if (in_registers) {
    const auto a = d.values(d.operand(1), 4);
    if (a.size() != 4) return false;
    d.now.more.insert(d.now.more.end(), a.begin(), a.end());
  } else {
    d.now.a[0] = d.value(d.operand(1), 8);
  }
  d.now.a[1] = d.value(d.operand(2), 8);
  d.now.a[2] = d.value(d.operand(3), 0);
  size_t k = 4;
  for (; k < 6; ++k) {
    if (d.number(d.operand(k)) != 1) return false;  // a scale of -1
  }
  if (!in_registers && k < d.operands() && d.number(d.operand(k++)) == 1) d.now.option |= 8;
  if (k < d.operands() && d.number(d.operand(k++)) == 1) d.now.option |= 16;
  d.now.kind = Kind::matrix;
  d.now.step = issue;
  return k == d.operands();
}

}  // namespace

void finish_products(Warp& w, int left) {
  std::vector<Product> stay;
  w.flying.clear();
  for (Product& p : w.products) {
    if (p.group >= 0 && p.group < w.product_groups - left) {
      finish(w, p);
    } else {
      const Instruction& i = *p.instruction;
      w.flying.insert(w.flying.end(), i.more.begin(), i.more.begin() + i.second);
      stay.push_back(std::move(p));
    }
  }
  w.products = std::move(stay);
  w.fenced = false;
}

bool decode_matrix(Decoder& d) {
  const std::string& op = d.word(0);
  if (op == "ldmatrix") return matrix_memory(d, true);
  if (op == "stmatrix") return matrix_memory(d, false);
  if (op == "mma") return matrix_multiply(d);
  if (op == "wgmma") return warpgroup(d);
  return false;
}

}  // namespace machine
