// The normalised density of every row, the nodes and weights of its gradient, and the autoregressive draw by quantiles:
// of the density at one noise level, or of that at the first carried to the last by the probability flow.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/conditional_density.cpp"
#include <cmath>
#include <cstring>
#include <tuple>

#include "common/density_args.h"
#include "common/draw_args.h"
#include "common/flow.h"
#include "common/ops.h"
#include "common/philox.h"
#include "common/quadrature.h"
#include "cpu/launch.h"
#include "cpu/foreach_isa.h"
#endif

#if !FASTCSM_LAUNCHER
namespace fastcsm::FASTCSM_ISA {
namespace {

#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/head.h"
#include "cpu/row_tasks.h"
#include "cpu/points.h"
#include "cpu/preconditioning.h"
#include "cpu/quadrature.h"
#include "cpu/density.h"
#include "cpu/flow.h"
#include "cpu/draw.h"

template <class S, class T>
struct DensityRows {
  Points<T> points;
  DensityBlock<T> block;

  static constexpr int64_t kRows = 2 * kMicroRows;
  static double scores(const DensityArgs& a) { return static_cast<double>(a.panels * kNodes); }
  static int64_t capacity(const Packed<T>&, int64_t share) { return share < kRows ? share : kRows; }
  void layout(const Packed<T>& head, Arena& arena, int64_t rows) {
    points.layout(head, arena, rows, point_tile(head));
    block.layout(points, arena, rows);
  }

  void run(const DensityArgs& a, const Packed<T>& head, int64_t begin, int64_t rows) {
    load_contexts<S>(points, a.context, begin, rows, head.C - (a.has_feature && a.squash == 0));
    for (int64_t r = 0; a.squash > 0 && r < rows; ++r)
      block.rho[r] = __builtin_exp(-(offset_of<S>(a.context, begin + r, head.C) + a.feature));
    double point[kRows];
    for (int64_t r = 0; r < rows; ++r)
      point[r] = static_cast<double>(from_storage(static_cast<const S*>(a.point)[begin + r]));
    const DensityOptions options{
        a.score_scale, a.low,    a.high, a.tolerance, a.unit, a.squash, a.has_feature ? &a.feature : nullptr,
        a.panels,      a.inverse};
    block.solve(rows, options, point);
    for (int64_t r = 0; r < rows; ++r) {
      if (a.nodes == nullptr) {
        const DensityRow row = block.answer(r, options, point[r]);
        store(a, begin + r, fits(row) || a.inverse ? row : kNoDensity);
      } else {
        store_nodes(a, begin + r, block.row[r], point[r]);
      }
    }
  }

  // Whether log q(x) and its error are in the range of the results.
  static bool fits(const DensityRow& row) {
    return __builtin_isfinite(static_cast<T>(row.log_density)) && __builtin_isfinite(static_cast<T>(row.error));
  }

  static void store(const DensityArgs& a, int64_t r, const DensityRow& row) {
    store_row<T>(a.out, r, {row.point, row.log_density, row.log_normalizer, row.cdf, row.error});
    for (int side = 0; side < 2; ++side) static_cast<T*>(a.ends)[2 * r + side] = static_cast<T>(row.ends[side]);
  }

  void store_nodes(const DensityArgs& a, int64_t r, const Row& row, double point) const {
    double t[kMaxPanels * kNodes], weight[kMaxPanels * kNodes], score;
    const int64_t count = row.nodes(*block.q, point, t, weight, score);
    S* to = static_cast<S*>(a.nodes) + r * kMaxPanels * kNodes;
    T* weights = static_cast<T*>(a.weights) + r * kMaxPanels * kNodes;
    for (int64_t i = 0; i < count; ++i) {
      to[i] = to_storage<S>(static_cast<T>(t[i]));
      weights[i] = static_cast<T>(weight[i]);
    }
    a.counts[r] = count;
    static_cast<T*>(a.scores)[r] = static_cast<T>(score);
  }
};

void conditional_density_kernel(const DensityArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() { run_rows<S, T, DensityRows<S, T>>(a); });
}

// Quantiles of uniform numbers, u = (w0 div 2^9 + 1/2) 2^-23 of stream 1 at step 0, for the variable next in a draw.
template <class S, class T>
struct QuantileDrawer {
  static double scores(const DrawArgs& a) { return static_cast<double>(a.panels * kNodes); }

  const DrawArgs* args;
  Points<T> points;
  DensityBlock<T> density;
  FlowBlock<T> flow;
  int64_t rows;
  T *drawn, *score;

  void layout(const DrawArgs& a, const Packed<T>* heads, Arena& arena) {
    args = &a;
    points.layout(heads[0], arena, kPanel<T>, point_tile(heads[0]));
    density.layout(points, arena, kPanel<T>);
    flow.layout(points, arena, kPanel<T>);
    drawn = arena.take<T>(kPanel<T>);
    score = arena.take<T>(kPanel<T>);
  }
  template <class At>
  void set_context(int64_t, int64_t count, At at) {
    rows = count;
    points.set_context(count, args->context, at);
  }
  const T* x() const { return drawn; }
  const T* s() const { return score; }

  void draw(int64_t, const Noise& noise) {
    const DrawArgs& a = *args;
    const bool conditional = a.sigma_to > 0;
    const double feature = conditional ? __builtin_log(a.sigma_from) : 0;
    const DensityOptions options{conditional ? 1 / a.sigma_from : 1, a.low,    a.high, a.tolerance, a.unit, 0,
                                 conditional ? &feature : nullptr,   a.panels, true};
    double u[kPanel<T>];
    for (int64_t r = 0; r < rows; r += kPhiloxLanes) {
      uint32_t w0[kPhiloxLanes], w1[kPhiloxLanes];
      const int count = rows - r < kPhiloxLanes ? static_cast<int>(rows - r) : kPhiloxLanes;
      noise_words<kUniforms>(noise.seed, noise.samples + r, noise.dimensions + r, 0, count, w0, w1);
      for (int i = 0; i < count; ++i) u[r + i] = (static_cast<double>(w0[i] >> 9) + 0.5) * 0x1p-23;
    }
    density.solve(rows, options, u);
    for (int64_t r = 0; r < rows; ++r) flow.row[r].x = density.answer(r, options, u[r]).point;
    if (conditional && a.sigma_from != a.sigma_to)
      flow.template solve<kValue>(rows, {a.sigma_from, a.sigma_to, a.flow_tolerance, 0});
    for (int64_t r = 0; r < rows; ++r) drawn[r] = static_cast<T>(flow.row[r].x);
    if (a.clean == nullptr) return;
    const T last = static_cast<T>(conditional ? __builtin_log(a.sigma_to) : 0);
    for (int64_t r = 0; r < rows; ++r) {
      points.tile.x[r] = drawn[r];
      flow.active[r] = static_cast<int32_t>(r);
      flow.feature[r] = last;
    }
    points.template evaluate<kValue>(rows, flow.active, conditional ? flow.feature : nullptr);
    memcpy(score, points.tile.s, rows * sizeof(T));
  }
};

void conditional_density_draw_kernel(const DrawArgs& a) {
  by_storage(a.storage, [&]<class S, class T>() { DrawRows<S, T, QuantileDrawer<S, T>>{a}.run(); });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {
namespace {

// The unit of rounding of bfloat16, where products may round their operands to it.
constexpr double kReducedUnit = 1.0 / 128;

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conditional_density(
    Tensor context, Tensor point, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
    double score_scale, std::vector<double> stage_features, double low, double high, double tolerance, int64_t panels,
    double squash, bool inverse, bool reduced) {
  DensityArgs a = density_args(context, point, weights, biases, frequencies, activation, score_scale, stage_features,
                               low, high, tolerance, panels, squash, inverse, reduced, kReducedUnit);
  const auto results = new_densities(a, point);
  FASTCSM_DISPATCH(conditional_density_kernel, uses_pairs(a.head), a);
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conditional_density_nodes(Tensor context, Tensor point, Tensors weights,
                                                                     Tensors biases, Tensor frequencies,
                                                                     int64_t activation, double score_scale,
                                                                     std::vector<double> stage_features, double low,
                                                                     double high, double tolerance, int64_t panels,
                                                                     double squash, bool reduced) {
  DensityArgs a = density_args(context, point, weights, biases, frequencies, activation, score_scale, stage_features,
                               low, high, tolerance, panels, squash, false, reduced, kReducedUnit);
  auto results = new_density_nodes(a, point);
  torch::stable::zero_(std::get<0>(results));
  torch::stable::zero_(std::get<1>(results));
  FASTCSM_DISPATCH(conditional_density_kernel, uses_pairs(a.head), a);
  return results;
}

std::tuple<Tensor, Tensor> conditional_density_draw(Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                                    int64_t activation, Tensors made_weights, Tensors made_biases,
                                                    Tensors degrees, Tensor order, int64_t made_activation,
                                                    bool residual, std::vector<double> sigmas, double low, double high,
                                                    double tolerance, double flow_tolerance, int64_t panels,
                                                    int64_t seed, Tensor samples, int64_t first, int64_t last,
                                                    double denoise, bool reduced) {
  Draw draw(x, weights, biases, frequencies, activation, made_weights, made_biases, degrees, order, made_activation,
            residual, !sigmas.empty(), seed, samples, first, last, denoise != 0, reduced);
  DrawArgs& a = draw.args;
  expect(a.models == 1, "made_weights must hold the layers of one network");
  expect(sigmas.size() <= 2, "sigmas must have at most two values");
  for (const double sigma : sigmas) expect(sigma > 0, "sigmas must be positive");
  expect(panels >= 1 && panels <= 16 && low < high && tolerance > 0 && flow_tolerance > 0,
         "panels must be in [1, 16], low below high, and tolerances positive");
  a.sigma_from = sigmas.empty() ? 0 : sigmas.front();
  a.sigma_to = sigmas.empty() ? 0 : sigmas.back();
  a.low = low, a.high = high, a.tolerance = tolerance, a.panels = panels;
  a.flow_tolerance = flow_tolerance;
  a.unit = rounding_unit(a.storage, reduced, kReducedUnit);
  a.denoise = sigmas.empty() ? denoise : denoise / sigmas.back();
  if (a.rows > 0) FASTCSM_DISPATCH(conditional_density_draw_kernel, uses_pairs(a), a);
  return draw.results();
}

}  // namespace fastcsm
#endif
