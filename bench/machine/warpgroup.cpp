// Hopper's wgmma: descriptors and swizzles decoded, operands read when the group is waited for.
#include "matrix.h"

namespace machine {
namespace {

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
    if (w.block->shadow.seen_by_proxy(w.index, at)) continue;
    // Of copies the documents ask for a fence too, and code that compilers made for years has none.
    if (w.block->shadow.copied[at]) {
      ++w.block->launch->counts.unfenced_copies;
    } else {
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

bool decode_warpgroup(Decoder& d) { return d.word(0) == "wgmma" && warpgroup(d); }

}  // namespace machine
