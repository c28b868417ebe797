// The normalised density of every row, and the nodes and weights of its gradient.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/conditional_density.cpp"
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <tuple>

#include "cpu/launch.h"
#include "cpu/ops.h"
#include "cpu/quadrature.h"
#include "cpu/foreach_isa.h"
#endif

#if !FASTCSM_LAUNCHER
namespace fastcsm::FASTCSM_ISA {
namespace {

#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/head.h"
#include "cpu/points.h"
#include "cpu/density.h"

template <class S, class T>
struct DensityRows {
  const DensityArgs& a;
  Packed<T> head;
  int64_t capacity, tile, scratch_bytes;
  char* scratch;

  static constexpr int64_t kRows = 2 * kMicroRows;

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& d = *static_cast<const DensityRows*>(self);
    const DensityArgs& a = d.a;
    Arena arena(d.scratch + worker * d.scratch_bytes);
    DensityBlock<T> block;
    block.layout(d.head, arena, d.capacity, d.tile);
    const int64_t begin = task * d.capacity, rows = a.rows - begin < d.capacity ? a.rows - begin : d.capacity;
    const int64_t given = a.has_feature ? d.head.C - 1 : d.head.C;  // columns of context in memory
    const S* context = static_cast<const S*>(a.context) + begin * given;
    block.points.set_context(rows, given, [&](int64_t r, int64_t j) { return from_storage(context[r * given + j]); });
    double point[kRows];
    for (int64_t r = 0; r < rows; ++r)
      point[r] = static_cast<double>(from_storage(static_cast<const S*>(a.point)[begin + r]));
    const DensityOptions options{
        a.score_scale, a.low, a.high, a.tolerance, a.unit, a.has_feature ? &a.feature : nullptr, a.panels, a.inverse};
    block.solve(rows, options, point);
    for (int64_t r = 0; r < rows; ++r) {
      if (a.nodes == nullptr) {
        d.store(begin + r, block.answer(r, options, point[r]));
      } else {
        d.store_nodes(begin + r, block, r, point[r]);
      }
    }
  }

  void store(int64_t r, const DensityRow& row) const {
    const double values[5] = {row.point, row.log_density, row.log_normalizer, row.cdf, row.error};
    for (int i = 0; i < 5; ++i) static_cast<T*>(a.out[i])[r] = static_cast<T>(values[i]);
    for (int side = 0; side < 2; ++side) static_cast<T*>(a.ends)[2 * r + side] = static_cast<T>(row.ends[side]);
  }

  void store_nodes(int64_t r, const DensityBlock<T>& block, int64_t own, double point) const {
    double t[kMaxPanels * kNodes], weight[kMaxPanels * kNodes], score = kNaN;
    const Row& row = block.row[own];
    const int64_t count = row.count == 0 ? 0 : row.nodes(*block.q, point, t, weight, score);
    S* to = static_cast<S*>(a.nodes) + r * kMaxPanels * kNodes;
    T* weights = static_cast<T*>(a.weights) + r * kMaxPanels * kNodes;
    for (int64_t i = 0; i < count; ++i) {
      to[i] = to_storage<S>(static_cast<T>(t[i]));
      weights[i] = static_cast<T>(weight[i]);
    }
    a.counts[r] = count;
    static_cast<T*>(a.scores)[r] = static_cast<T>(score);
  }

  void run() {
    const PackedMemory<S, T> weights(head, a.head, false);
    const int64_t share = (a.rows + workers() - 1) / workers();
    capacity = share < kRows ? share : kRows;
    tile = point_tile(head);
    Arena measure(nullptr);
    DensityBlock<T>().layout(head, measure, capacity, tile);
    scratch_bytes = measure.bytes();
    Scratch memory(scratch_bytes * workers());
    scratch = static_cast<char*>(memory.p);
    run_tasks((a.rows + capacity - 1) / capacity, task, this);
  }
};

template <class S, class T>
void density_typed(const DensityArgs& a) {
  if (a.rows > 0) DensityRows<S, T>{a, {}, 0, 0, 0, nullptr}.run();
}

void conditional_density_kernel(const DensityArgs& a) {
  if (a.head.storage == Storage::f32) return density_typed<float, float>(a);
  if (a.head.storage == Storage::bf16) return density_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  density_typed<double, double>(a);
#endif
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {
namespace {

DensityArgs density_args(const Tensor& context, const Tensor& point, const Tensors& weights, const Tensors& biases,
                         const Tensor& frequencies, int64_t activation, double score_scale,
                         const std::vector<double>& stage_features, double low, double high, double tolerance,
                         int64_t panels, bool reduced) {
  DensityArgs a{};
  a.head = head_args(context, point, weights, biases, frequencies, activation, reduced);
  a.rows = point.numel();
  a.has_feature = !stage_features.empty();
  if (stage_features.size() > 1 || (a.has_feature && a.head.context < 1))
    throw std::invalid_argument("fastcsm: stage_features must have at most one value");
  if (panels < 1 || panels > 16 || !(low < high) || !(tolerance > 0))
    throw std::invalid_argument("fastcsm: panels must be in [1, 16], low below high, and tolerance positive");
  a.feature = a.has_feature ? stage_features[0] : 0;
  a.context = checked(context, "context", point.scalar_type(), a.rows * (a.head.context - a.has_feature));
  a.point = checked(point, "x", point.scalar_type(), a.rows);
  a.score_scale = score_scale, a.low = low, a.high = high, a.tolerance = tolerance, a.panels = panels;
  a.unit = a.head.storage == Storage::f64   ? std::numeric_limits<double>::epsilon()
           : a.head.storage == Storage::f32 ? double(std::numeric_limits<float>::epsilon())
                                            : 1.0 / 128;
  return a;
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, torch::headeronly::ScalarType type) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, type);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conditional_density(
    Tensor context, Tensor point, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
    double score_scale, std::vector<double> stage_features, double low, double high, double tolerance, int64_t panels,
    bool inverse, bool reduced) {
  DensityArgs a = density_args(context, point, weights, biases, frequencies, activation, score_scale, stage_features,
                               low, high, tolerance, panels, reduced);
  a.inverse = inverse;
  const auto type = compute_type(point);
  Tensors out;
  for (int i = 0; i < 5; ++i) {
    out.push_back(empty(point, {a.rows}, type));
    a.out[i] = out[i].mutable_data_ptr();
  }
  Tensor ends = empty(point, {a.rows, 2}, type);
  a.ends = ends.mutable_data_ptr();
  FASTCSM_DISPATCH(conditional_density_kernel, uses_pairs(a.head), a);
  return {out[0], out[1], out[2], out[3], out[4], ends};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conditional_density_nodes(Tensor context, Tensor point, Tensors weights,
                                                                     Tensors biases, Tensor frequencies,
                                                                     int64_t activation, double score_scale,
                                                                     std::vector<double> stage_features, double low,
                                                                     double high, double tolerance, int64_t panels,
                                                                     bool reduced) {
  DensityArgs a = density_args(context, point, weights, biases, frequencies, activation, score_scale, stage_features,
                               low, high, tolerance, panels, reduced);
  const auto type = compute_type(point);
  constexpr int64_t kMost = 64 * kNodes;
  Tensor t = empty(point, {a.rows, kMost}, point.scalar_type()), weight = empty(point, {a.rows, kMost}, type);
  Tensor count = empty(point, {a.rows}, torch::headeronly::ScalarType::Long), score = empty(point, {a.rows}, type);
  a.nodes = t.mutable_data_ptr();
  a.weights = weight.mutable_data_ptr();
  a.counts = static_cast<int64_t*>(count.mutable_data_ptr());
  a.scores = score.mutable_data_ptr();
  FASTCSM_DISPATCH(conditional_density_kernel, uses_pairs(a.head), a);
  return {t, weight, count, score};
}

}  // namespace fastcsm
#endif
