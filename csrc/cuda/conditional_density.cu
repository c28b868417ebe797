// Normalised densities, quantiles, and the nodes of the densities' gradients. A warp owns a row: it computes the
// context's share of the first layer once, evaluates a panel's 16 nodes as one tile of points (points.h), does the
// panels' float64 arithmetic on its lanes (density.h), and goes on until the row's panels are good enough. Rows need
// 8 to 64 panels, and no warp waits for another: after the parameters are loaded there is no barrier. Blocks are
// persistent, one to a multiprocessor, and rows are dealt to blocks before warps, so that few rows have many
// multiprocessors.
//
// What a panel costs a warp, counted in the code for sm_90 (two hidden layers of 128 units, silu, 16 frequencies): some
// 2300 instructions in bfloat16 and 3000 with tf32, among them 160 and 320 matrix instructions, and in float32 960; and
// 128, 256 and 256 of the special function units; 600 are the panel's float64 arithmetic. The issue of instructions is
// the limit: the special function units are busy for 1000, 2000 and 2000 cycles, the matrix units for about 1000, 2000
// and 6000.
#include <tuple>

#include "common/density_args.h"
#include "common/ops.h"
#include "cuda/density.h"
#include "cuda/launch.h"
#include "cuda/points.h"
#include "cuda/preconditioning.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

struct RowsArgs {
  DensityArgs density;
  Quadrature quadrature;
};
// What a launch may bring along.
static_assert(sizeof(RowsArgs) <= 32764);

// Warps of a block, as registers allow.
template <Precision P>
constexpr int kMostWarps = P == Precision::bf16 ? 12 : 8;

template <Precision P>
struct DensityMemory {
  DensityTables* tables;
  PointsMemory<P, true, false> points;
  PanelMemory* panels;  // (warps)

  __host__ __device__ DensityMemory(const HeadArgs& head, int warps, SharedMemory& memory)
      : tables(memory.take<DensityTables>(1)), points(head, warps, memory), panels(memory.take<PanelMemory>(warps)) {}
};

FASTCSM_INLINE void store(const DensityArgs& args, int64_t row, const DensityResult& r, int lane) {
  const auto put = [&](void* to, double value) { static_cast<float*>(to)[row] = float(value); };
  if (lane == 0) {
    put(args.out[0], r.point), put(args.out[1], r.log_density), put(args.out[2], r.log_normalizer);
    put(args.out[3], r.cdf), put(args.out[4], r.error);
  }
  if (lane % kNodes == 0) static_cast<float*>(args.ends)[2 * row + lane / kNodes] = float(r.end);
}

// Whether log q(x) and its error are in the range of the results.
FASTCSM_INLINE bool fits(const DensityResult& r) {
  return fabsf(float(r.log_density)) < float(kInfinity) && float(r.error) < float(kInfinity);
}

// The row's nodes and weights, zeros after the last.
template <class S, class Density>
FASTCSM_INLINE void store_nodes(const DensityArgs& args, int64_t row, Density& density, bool valid, int lane) {
  S* nodes = static_cast<S*>(args.nodes) + row * (kMaxPanels * kNodes);
  float* weights = static_cast<float*>(args.weights) + row * (kMaxPanels * kNodes);
  const double score = density.gradient(valid, [&](int i, double t, double weight) {
    nodes[i] = to_storage<S>(float(t));
    weights[i] = float(weight);
  });
  const int count = density.count() * kNodes;
  for (int i = count + lane; i < kMaxPanels * kNodes; i += kWarp) {
    nodes[i] = to_storage<S>(0.f);
    weights[i] = 0.f;
  }
  if (lane != 0) return;
  args.counts[row] = count;
  static_cast<float*>(args.scores)[row] = float(score);
}

template <Precision P, bool kPreconditioned>
__global__ void __launch_bounds__(kMostWarps<P>* kWarp, 1)
    conditional_density_kernel(const __grid_constant__ RowsArgs rows) {
  constexpr bool kBf16 = P == Precision::bf16;
  const DensityArgs& args = rows.density;
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  SharedMemory memory(block_memory());
  const DensityMemory<P> m(args.head, warps, memory);
  m.points.load(args.head);
  m.tables->load(rows.quadrature);
  __syncthreads();
  const Points<P, true, false> points(args.head, m.points);
  RowDensity<kPreconditioned> density(args, *m.tables, m.panels[warp]);
  const int given = int(args.head.context) - (kPreconditioned ? 0 : args.has_feature);
#pragma unroll 1
  for (int64_t row = int64_t(warp) * gridDim.x + blockIdx.x; row < args.rows; row += int64_t(warps) * gridDim.x) {
    points.set_context(given, float(args.feature),
                       [&](int, int column) { return read_parameter(args.context, row * given + column, kBf16); });
    double rho = 1;
    if constexpr (kPreconditioned) {
      rho = exp(-double(read_parameter(args.context, row * given + given - 1, kBf16)) - args.feature);
    }
    const bool valid = density.begin(read_parameter(args.point, row, kBf16), rho);
    while (valid && density.pending() > 0) {
#pragma unroll 1
      for (int i = 0; i < density.pending(); ++i) {
        const int panel = density.pending(i);
        float s, unused;
        const double node = density.node(panel);
        float x = float(node);
        if constexpr (kPreconditioned) x = squashed<P>(node, args.squash).u;
        points.template evaluate<false>(x, 0.f, s, unused);
        density.summarize(panel, s);
      }
      density.refine();
    }
    if (args.nodes) {
      store_nodes<Element<P>>(args, row, density, valid, lane);
    } else {
      const DensityResult r = valid ? density.answer() : no_density();
      store(args, row, args.inverse || fits(r) ? r : no_density(), lane);
    }
  }
}

template <Precision P>
int density_bytes(const HeadArgs& head, int warps) {
  SharedMemory measure;
  const DensityMemory<P> memory(head, warps, measure);
  return measure.used();
}

void run(const DensityArgs& density, const Tensor& point) {
  if (density.rows == 0) return;
  const Device device(point);
  const RowsArgs args{density, quadrature()};
  with_precision(density.head, [&](auto precision) {
    constexpr Precision kPrecision = decltype(precision)::value;
    const auto bytes = [&](int warps) { return density_bytes<kPrecision>(density.head, warps); };
    const int warps = warps_that_fit(kMostWarps<kPrecision>, bytes);
    const int64_t most = device.multiprocessors(), blocks = density.rows < most ? density.rows : most;
    if (density.squash > 0) {
      device.launch(conditional_density_kernel<kPrecision, true>, blocks, warps * kWarp, bytes(warps), args);
    } else {
      device.launch(conditional_density_kernel<kPrecision, false>, blocks, warps * kWarp, bytes(warps), args);
    }
  });
}

// The unit of rounding of tf32.
constexpr double kReducedUnit = 1.0 / 1024;

}  // namespace

int64_t conditional_density_bytes(const HeadArgs& head) {
  int64_t bytes = 0;
  with_precision(head, [&](auto precision) { bytes = density_bytes<precision.value>(head, 1); });
  return bytes;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conditional_density(
    Tensor context, Tensor point, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
    double score_scale, std::vector<double> stage_features, double low, double high, double tolerance, int64_t panels,
    double squash, bool inverse, bool reduced) {
  DensityArgs a = density_args(context, point, weights, biases, frequencies, activation, score_scale, stage_features,
                               low, high, tolerance, panels, squash, inverse, reduced, kReducedUnit);
  const auto results = new_densities(a, point);
  run(a, point);
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
  const auto results = new_density_nodes(a, point);
  run(a, point);
  return results;
}

}  // namespace fastcsm
