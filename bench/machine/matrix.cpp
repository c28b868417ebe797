// Matrix instructions: ldmatrix, stmatrix and mma.sync.
#include "matrix.h"

#include <cmath>

namespace machine {

bool element_of(const std::string& type, uint8_t& element) {
  element = type == "f16" ? kHalf : type == "bf16" ? kBfloat : kTf32;
  return type == "f16" || type == "bf16" || type == "tf32";
}

namespace {

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

}  // namespace

bool decode_matrix(Decoder& d) {
  const std::string& op = d.word(0);
  if (op == "ldmatrix") return matrix_memory(d, true);
  if (op == "stmatrix") return matrix_memory(d, false);
  return op == "mma" && matrix_multiply(d);
}

}  // namespace machine
