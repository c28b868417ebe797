// y = f((W * M) x + b) with M[o, i] = in_degree(i) <= out_degree(o), and its backward pass. Inputs and outputs are
// taken in order of degree, so the mask is a staircase: output o reads the first reach[o] inputs. Work is skipped by
// tile, and an entry of W beyond the stairs is replaced by zero when it is packed: no mask is stored or multiplied.
// Every product is a micro-kernel over operands packed as A [k][kMicroRows], B [k][kPanel]; a result is one chain of
// multiply-adds over k in ascending order whatever the split into tasks.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/masked_linear.cpp"
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "cpu/launch.h"
#include "cpu/stairs.h"
#include "cpu/foreach_isa.h"
#endif

#if !FASTCSM_LAUNCHER
namespace fastcsm::FASTCSM_ISA {
namespace {

#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/packing.h"
#include "cpu/storage.h"

constexpr int64_t kDepth = 256;  // K of one packed block
constexpr int64_t kTiles = 4;    // micro-kernels of rows that share one packing
constexpr int64_t kBatch = 256;  // samples of one pass over a block of outputs

template <class T, int A>
void activate_row(T* y, T* a, int64_t n, T bias) {
  for (int64_t j = 0; j < n; j += Vec<T>::W) {
    const Vec<T> v = Vec<T>::load(a + j) + Vec<T>(bias);
    Vec<T> f, d, e;
    activate<A>(v, f, d, e);
    v.store(a + j);
    f.store(y + j);
  }
}
template <class T, int A>
void derivative_row(T* a, int64_t n) {
  for (int64_t j = 0; j < n; j += Vec<T>::W) {
    Vec<T> f, d, e;
    activate<A>(Vec<T>::load(a + j), f, d, e);
    d.store(a + j);
  }
}

template <class S, class T>
struct MaskedLinear {
  const MaskedLinearArgs& a;
  T *x_panels, *grad, *grad_tiles;
  int64_t panels_per_task;

  static constexpr int64_t R = kMicroRows, P = kPanel<T>;
  const S* x_row(int64_t b) const { return static_cast<const S*>(a.x) + b * a.inputs; }
  const S* weight(int64_t o) const { return static_cast<const S*>(a.weight) + a.out_order[o] * a.inputs; }

  // Elements [i0, i0 + n) of a row in order of degree: where they lie, or gathered into temp.
  const T* in_sorted(const S* row, int64_t i0, int64_t n, T* temp) const {
    if constexpr (sizeof(S) == sizeof(T)) {
      if (a.inputs_in_order) return row + i0;
    }
    for (int64_t i = 0; i < n; ++i) temp[i] = from_storage(row[a.in_order[i0 + i]]);
    return temp;
  }
  void to_sorted(S* row, int64_t i0, int64_t n, const T* from) const {
    if (a.inputs_in_order) {
      for (int64_t i = 0; i < n; ++i) row[i0 + i] = to_storage<S>(from[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) row[a.in_order[i0 + i]] = to_storage<S>(from[i]);
    }
  }

  static double cells(int64_t rows, int64_t cols) { return static_cast<double>(rows) * static_cast<double>(cols); }
  // Multiply-adds of one product: the stairs leave about half.
  double products() const { return cells(a.rows, a.inputs) * static_cast<double>(a.outputs) / 2; }

  // Forward. x_panels: for each P samples, words [input][P].
  static void pack_samples(void* self, int64_t p, Arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const int64_t I = m.a.inputs;
    for (int64_t k0 = 0; k0 < I; k0 += kDepth) {
      const int64_t K = std::min(kDepth, I - k0);
      T temp[kDepth];
      pack_columns(
          m.x_panels + (p * words<T>(I) + words<T>(k0)) * P, K, P, m.a.rows - p * P,
          [&](int64_t b) { return m.in_sorted(m.x_row(p * P + b), k0, K, temp); }, [&](int64_t) { return K; });
    }
  }

  static void forward_task(void* self, int64_t task, Arena arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const MaskedLinearArgs& a = m.a;
    const int64_t blocks = (a.outputs + kTiles * R - 1) / (kTiles * R);
    const int64_t o0 = (blocks - 1 - task) * kTiles * R;  // the deepest blocks first
    const int64_t outs = std::min(kTiles * R, a.outputs - o0), depth = a.reach[o0 + outs - 1];
    T* tiles = arena.take<T>(kTiles * R * words<T>(kDepth));
    T* c = arena.take<T>(kTiles * R * kBatch);
    T* y = arena.take<T>(kTiles * R * kBatch);
    for (int64_t b0 = 0; b0 < a.rows && !stopped(); b0 += kBatch) {
      const int64_t batch = std::min(kBatch, a.rows - b0), ldc = round_up(batch, P);
      if (depth == 0) memset(c, 0, kTiles * R * ldc * sizeof(T));
      for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
        const int64_t K = std::min(kDepth, depth - k0);
        for (int64_t t = 0; t * R < outs; ++t) {
          T temp[kDepth];
          pack_columns(
              tiles + t * R * words<T>(kDepth), K, R, outs - t * R,
              [&](int64_t i) { return m.in_sorted(m.weight(o0 + t * R + i), k0, K, temp); },
              [&](int64_t i) { return a.reach[o0 + t * R + i] - k0; });
        }
        for (int64_t p = 0; p < ldc; p += P) {
          const T* b = m.x_panels + (b0 + p) * words<T>(a.inputs) + words<T>(k0) * P;
          for (int64_t t = 0; t * R < outs; ++t) {
            T* ct = c + t * R * ldc + p;
            micro_kernel<T, R, kMicroVectors, true>(words<T>(K), tiles + t * R * words<T>(kDepth), R, b, P,
                                                    k0 == 0 ? nullptr : ct, ct, ldc);
          }
        }
      }
      for (int64_t o = 0; o < outs; ++o) {
        const T bias = from_storage(static_cast<const S*>(a.bias)[a.out_order[o0 + o]]);
        if (a.activation < 0) {
          for (int64_t j = 0; j < batch; ++j) y[o * ldc + j] = c[o * ldc + j] + bias;
        } else {
          FASTCSM_BY_ACTIVATION(a.activation, activate_row<T, A>(y + o * ldc, c + o * ldc, ldc, bias));
        }
      }
      m.write(static_cast<S*>(a.y), y, b0, batch, ldc, o0, outs);
      if (a.activation >= 0) m.write(static_cast<S*>(a.preactivation), c, b0, batch, ldc, o0, outs);
    }
  }
  void write(S* out, const T* from, int64_t b0, int64_t batch, int64_t ld, int64_t o0, int64_t outs) const {
    for (int64_t b = 0; b < batch; ++b) {
      S* row = out + (b0 + b) * a.outputs;
      if (a.outputs_in_order) {
        for (int64_t o = 0; o < outs; ++o) row[o0 + o] = to_storage<S>(from[o * ld + b]);
      } else {
        for (int64_t o = 0; o < outs; ++o) row[a.out_order[o0 + o]] = to_storage<S>(from[o * ld + b]);
      }
    }
  }

  void forward() {
    const int64_t panels = (a.rows + P - 1) / P;
    Scratch x_memory(round_up(a.rows, P) * words<T>(a.inputs) * int64_t(sizeof(T)));
    x_panels = static_cast<T*>(x_memory.p);
    run_tasks(panels, 0, team(kMoved * cells(a.rows, a.inputs)), pack_samples, this);
    Arena measure(nullptr);
    measure.take<T>(kTiles * R * words<T>(kDepth));
    measure.take<T>(2 * kTiles * R * kBatch);
    run_tasks((a.outputs + kTiles * R - 1) / (kTiles * R), measure.bytes(), team(products()), forward_task, this);
  }

  // Backward. grad (B, O): the gradient with respect to the preactivation, outputs in order of degree;
  // grad_tiles: the same for each R samples, words [output][R].
  static void pack_grad(void* self, int64_t tile, Arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const MaskedLinearArgs& a = m.a;
    const int64_t count = std::min(R, a.rows - tile * R), ld = round_up(a.outputs, Vec<T>::W);
    for (int64_t b = tile * R; b < tile * R + count; ++b) {
      T* g = m.grad + b * ld;
      const S* gy = static_cast<const S*>(a.grad_y) + b * a.outputs;
      if (a.activation < 0 && a.outputs_in_order) {
        for (int64_t o = 0; o < a.outputs; ++o) g[o] = from_storage(gy[o]);
      } else if (a.activation >= 0) {
        const S* pre = static_cast<const S*>(a.given_preactivation) + b * a.outputs;
        for (int64_t o = 0; o < ld; ++o) g[o] = o < a.outputs ? from_storage(pre[a.out_order[o]]) : T(0);
        FASTCSM_BY_ACTIVATION(a.activation, derivative_row<T, A>(g, ld));
        for (int64_t o = 0; o < a.outputs; ++o) g[o] *= from_storage(gy[a.out_order[o]]);
      } else {
        for (int64_t o = 0; o < a.outputs; ++o) g[o] = from_storage(gy[a.out_order[o]]);
      }
    }
    if (a.grad_x != nullptr)
      pack_columns(
          m.grad_tiles + tile * R * words<T>(a.outputs), a.outputs, R, count,
          [&](int64_t b) { return m.grad + (tile * R + b) * ld; }, [&](int64_t) { return a.outputs; });
  }

  static void grad_x_task(void* self, int64_t task, Arena arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const MaskedLinearArgs& a = m.a;
    const int64_t width = m.panels_per_task * P, i0 = task * width, cols = std::min(width, a.inputs - i0);
    // Outputs that read input i0 or a later one; even, so that pairs fall on the same words in every task.
    const int64_t first = (std::upper_bound(a.reach, a.reach + a.outputs, i0) - a.reach) / 32 * 32;
    const int64_t rows = round_up(a.rows, R);
    T* panels = arena.take<T>(words<T>(kDepth) * width);
    T* c = arena.take<T>(rows * width);
    memset(c, 0, rows * width * sizeof(T));
    for (int64_t k0 = first; k0 < a.outputs && !stopped(); k0 += kDepth) {
      const int64_t K = std::min(kDepth, a.outputs - k0);
      for (int64_t p = 0; p < cols; p += P) {
        T temp[2][P];
        pack_rows(
            panels + p * words<T>(kDepth), K, P,
            [&](int64_t k) { return m.in_sorted(m.weight(k0 + k), i0 + p, std::min(P, cols - p), temp[k & 1]); },
            [&](int64_t k) { return a.reach[k0 + k] - (i0 + p); });
      }
      for (int64_t p = 0; p < cols; p += P)
        for (int64_t b = 0; b < rows; b += R) {
          T* cb = c + p * rows + b * P;
          micro_kernel<T, R, kMicroVectors, true>(words<T>(K),
                                                  m.grad_tiles + b * words<T>(a.outputs) + words<T>(k0) * R, R,
                                                  panels + p * words<T>(kDepth), P, cb, cb, P);
        }
    }
    for (int64_t b = 0; b < a.rows; ++b) {
      S* row = static_cast<S*>(a.grad_x) + b * a.inputs;
      for (int64_t p = 0; p < cols; p += P) m.to_sorted(row, i0 + p, std::min(P, cols - p), c + p * rows + b * P);
    }
  }

  // x_panels for the weight gradient: for each P inputs, words [sample][P].
  static void pack_inputs(void* self, int64_t p, Arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const int64_t cols = std::min(P, m.a.inputs - p * P);
    T temp[2][P];
    pack_rows(
        m.x_panels + p * words<T>(m.a.rows) * P, m.a.rows, P,
        [&](int64_t b) { return m.in_sorted(m.x_row(b), p * P, cols, temp[b & 1]); }, [&](int64_t) { return cols; });
  }

  static void grad_weight_task(void* self, int64_t task, Arena arena) {
    const auto& m = *static_cast<const MaskedLinear*>(self);
    const MaskedLinearArgs& a = m.a;
    const int64_t tiles = (a.outputs + R - 1) / R, o0 = (tiles - 1 - task) * R, ld = round_up(a.outputs, Vec<T>::W);
    const int64_t outs = std::min(R, a.outputs - o0), depth = a.reach[o0 + outs - 1];
    if (a.grad_bias != nullptr) {
      for (int64_t o = 0; o < outs; ++o) {
        T sum(0);
        for (int64_t b = 0; b < a.rows; ++b) sum += m.grad[b * ld + o0 + o];
        static_cast<S*>(a.grad_bias)[a.out_order[o0 + o]] = to_storage<S>(sum);
      }
    }
    if (a.grad_weight == nullptr) return;
    T* tile = arena.take<T>(R * words<T>(a.rows));
    T* c = arena.take<T>(R * P);
    pack_rows(tile, a.rows, R, [&](int64_t b) { return m.grad + b * ld + o0; }, [&](int64_t) { return outs; });
    for (int64_t i0 = 0; i0 < depth && !stopped(); i0 += P) {
      micro_kernel<T, R, kMicroVectors, true>(words<T>(a.rows), tile, R, m.x_panels + i0 * words<T>(a.rows), P, nullptr,
                                              c, P);
      const int64_t cols = std::min(P, a.inputs - i0);
      for (int64_t o = 0; o < outs; ++o) {
        for (int64_t i = std::max<int64_t>(0, a.reach[o0 + o] - i0); i < cols; ++i) c[o * P + i] = T(0);
        m.to_sorted(m.grad_weight(o0 + o), i0, cols, c + o * P);
      }
    }
    const int64_t rest = std::min(a.inputs, round_up(depth, P));
    for (int64_t o = 0; o < outs; ++o) {
      S* row = m.grad_weight(o0 + o);
      if (a.inputs_in_order) {
        memset(static_cast<void*>(row + rest), 0, (a.inputs - rest) * sizeof(S));
      } else {
        for (int64_t i = rest; i < a.inputs; ++i) row[a.in_order[i]] = S{};
      }
    }
  }
  S* grad_weight(int64_t o) const { return static_cast<S*>(a.grad_weight) + a.out_order[o] * a.inputs; }

  void backward() {
    const int64_t tiles = (a.rows + R - 1) / R;
    Scratch grad_memory(a.rows * round_up(a.outputs, Vec<T>::W) * int64_t(sizeof(T)));
    Scratch tile_memory(a.grad_x == nullptr ? 0 : tiles * R * words<T>(a.outputs) * int64_t(sizeof(T)));
    grad = static_cast<T*>(grad_memory.p);
    grad_tiles = static_cast<T*>(tile_memory.p);
    run_tasks(tiles, 0, team(kMoved * cells(a.rows, a.outputs)), pack_grad, this);
    if (a.grad_x != nullptr) {
      const int64_t panels = (a.inputs + P - 1) / P;
      panels_per_task = std::max<int64_t>(1, std::min<int64_t>(8, panels / (4 * team(products()))));
      const int64_t width = panels_per_task * P;
      Arena measure(nullptr);
      measure.take<T>(words<T>(kDepth) * width);
      measure.take<T>(tiles * R * width);
      run_tasks((a.inputs + width - 1) / width, measure.bytes(), team(products()), grad_x_task, this);
    }
    if (a.grad_weight != nullptr || a.grad_bias != nullptr) {
      const int64_t panels = a.grad_weight == nullptr ? 0 : (a.inputs + P - 1) / P;
      Scratch x_memory(panels * P * words<T>(a.rows) * int64_t(sizeof(T)));
      x_panels = static_cast<T*>(x_memory.p);
      run_tasks(panels, 0, team(kMoved * cells(a.rows, panels * P)), pack_inputs, this);
      Arena measure(nullptr);
      measure.take<T>(R * words<T>(a.rows));
      measure.take<T>(R * P);
      run_tasks((a.outputs + R - 1) / R, measure.bytes(), team(products()), grad_weight_task, this);
    }
  }
};

void masked_linear_kernel(const MaskedLinearArgs& a) {
  by_storage(a.storage, [&]<class S, class T>() {
    MaskedLinear<S, T> m{a, nullptr, nullptr, nullptr, 1};
    if (a.y != nullptr) {
      m.forward();
    } else {
      m.backward();
    }
  });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {
namespace {

MaskedLinearArgs masked_args(const Tensor& x, const Tensor& weight, const Tensor& in_degrees, const Tensor& out_degrees,
                             int64_t activation, bool reduced, const Staircase& stairs) {
  if (x.dim() != 2 || weight.dim() != 2) throw std::invalid_argument("fastcsm: x and weight must have two dimensions");
  MaskedLinearArgs a{};
  a.storage = storage_of(x);
  a.reduced = reduced;
  a.activation = static_cast<int>(activation);
  a.rows = x.size(0), a.inputs = x.size(1), a.outputs = weight.size(0);
  a.x = checked(x, "x", x.scalar_type(), a.rows * a.inputs);
  a.weight = checked(weight, "weight", x.scalar_type(), a.outputs * a.inputs);
  checked(in_degrees, "in_degrees", torch::headeronly::ScalarType::Long, a.inputs);
  checked(out_degrees, "out_degrees", torch::headeronly::ScalarType::Long, a.outputs);
  a.inputs_in_order = stairs.inputs_in_order, a.outputs_in_order = stairs.outputs_in_order;
  a.in_order = stairs.in_order.data(), a.out_order = stairs.out_order.data(), a.reach = stairs.reach.data();
  return a;
}

}  // namespace

std::tuple<Tensor, Tensor> masked_linear(Tensor x, Tensor weight, Tensor bias, Tensor in_degrees, Tensor out_degrees,
                                         int64_t activation, bool reduced) {
  const Staircase stairs(in_degrees, out_degrees);
  MaskedLinearArgs a = masked_args(x, weight, in_degrees, out_degrees, activation, reduced, stairs);
  a.bias = checked(bias, "bias", x.scalar_type(), a.outputs);
  Tensor y = new_tensor(x, {a.rows, a.outputs}), preactivation = activation < 0 ? new_tensor(x, {0}) : new_like(y);
  a.y = y.mutable_data_ptr();
  a.preactivation = preactivation.mutable_data_ptr();
  if (a.rows * a.outputs > 0) FASTCSM_DISPATCH(masked_linear_kernel, uses_pairs(a), a);
  return {y, preactivation};
}

Tensor masked_linear_backward_into(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, Tensor in_degrees,
                                   Tensor out_degrees, int64_t activation, bool need_x, Tensor grad_weight,
                                   Tensor grad_bias, bool reduced) {
  const Staircase stairs(in_degrees, out_degrees);
  MaskedLinearArgs a = masked_args(x, weight, in_degrees, out_degrees, activation, reduced, stairs);
  a.grad_y = checked(grad_y, "grad_y", x.scalar_type(), a.rows * a.outputs);
  if (activation >= 0)
    a.given_preactivation = checked(preactivation, "preactivation", x.scalar_type(), a.rows * a.outputs);
  Tensor grad_x = need_x ? new_like(x) : new_tensor(x, {0});
  a.grad_x = need_x ? grad_x.mutable_data_ptr() : nullptr;
  if (grad_weight.numel() > 0) {
    checked(grad_weight, "grad_weight", x.scalar_type(), a.outputs * a.inputs);
    a.grad_weight = grad_weight.mutable_data_ptr();
  }
  if (grad_bias.numel() > 0) {
    checked(grad_bias, "grad_bias", x.scalar_type(), a.outputs);
    a.grad_bias = grad_bias.mutable_data_ptr();
  }
  FASTCSM_DISPATCH(masked_linear_kernel, uses_pairs(a), a);
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight,
                                                          Tensor in_degrees, Tensor out_degrees, int64_t activation,
                                                          bool need_x, bool need_weight, bool need_bias, bool reduced) {
  Tensor grad_weight = need_weight ? new_like(weight) : new_tensor(x, {0});
  Tensor grad_bias = new_tensor(x, {need_bias ? weight.size(0) : 0});
  Tensor grad_x = masked_linear_backward_into(grad_y, preactivation, x, weight, in_degrees, out_degrees, activation,
                                              need_x, grad_weight, grad_bias, reduced);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace fastcsm
#endif
