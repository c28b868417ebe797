// Rows carried from one noise level to another along the probability flow, each row with steps of its own
// (common/flow.h). A warp has kPoints rows on their way, and evaluates the head at all of them as one tile of points
// (points.h); no warp waits for another. A row that has arrived makes room for the next of its block, so that tiles
// stay full until rows run out; as nothing of a row depends on the others of its tile, it does not matter which warp
// has it. A step is six evaluations, and one more where rows begin; rows take some two to five steps. An evaluation of
// the default head (two hidden layers of 128 units, 16 frequencies) and its derivative is 320 matrix instructions of a
// warp in bfloat16, 1920 in float32.
//
// Lanes i and i + 16 advance row i alike, in float64; the first has the slopes of x, the second those of log p.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <tuple>

#include "common/flow.h"
#include "common/ops.h"
#include "cuda/launch.h"
#include "cuda/points.h"
#include "cuda/preconditioning.h"
#include "cuda/sizes.h"

namespace fastcsm {
namespace {

struct RowsArgs {
  FlowArgs flow;
  double begin, end;  // sqrt(sigma), the time that steps are in, of a plain head
  double time[kFlowStages];
  double line[kFlowStages + 1][kFlowStages];  // coefficients of the stages, and of the error
};

// Warps of a block, as registers allow.
template <Precision P, bool kChange>
constexpr int kMostWarps = P == Precision::bf16 && !kChange ? 16 : 8;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

// Doubles of a lane in shared memory: the slopes by stage, x or the change of log p, the time, and the step taken.
enum { kState = kFlowStages, kTime, kStep, kOwn };

template <Precision P, bool kChange>
struct FlowMemory {
  PointsMemory<P, false, kChange> points;
  double* own;     // (warps, kOwn, kWarp)
  unsigned* next;  // of the block's rows the first that no warp has

  __host__ __device__ FlowMemory(const HeadArgs& head, int warps, SharedMemory& memory)
      : points(head, warps, memory), own(memory.take<double>(warps * kOwn * kWarp)), next(memory.take<unsigned>(1)) {}
};

// The sum of the first `count` slopes times the coefficients of a line.
FASTCSM_INLINE double combined(const double* line, const double* own, int count) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kFlowStages; ++i) {
    if (i < count) sum += line[i] * own[i * kWarp];
  }
  return sum;
}

// By what a step is followed by one whose error is the tolerance, given the ratio of its own error to it.
FASTCSM_INLINE double step_factor(double ratio) {
  const float factor = 0.9f * exp2f(-0.2f * log2f(ratio < 1e-10 ? 1e-10f : float(ratio)));
  return factor > float(kSmallest) ? fmin(double(factor), kLargest) : kSmallest;  // the latter where it is no number
}

// The time sqrt(a) of a preconditioned head, a / (1 - a) being the row's own level.
FASTCSM_INLINE double time_of(double own) { return sqrt(own / (1 + own)); }

// d theta / da, theta being the angle whose tangent is the row's own level.
FASTCSM_INLINE double weight_of(double a) { return 1 / ((1 - a) * (1 - a) + a * a); }

template <Precision P, bool kChange, bool kPreconditioned>
__global__ void __launch_bounds__(kMostWarps<P, kChange>* kWarp, 1)
    probability_flow_kernel(const __grid_constant__ RowsArgs args) {
  constexpr unsigned kAll = 0xffffffffu, kFirsts = (1u << kPoints) - 1, kBoth = 1u | 1u << kPoints;
  constexpr bool kBf16 = P == Precision::bf16;
  const FlowArgs& flow = args.flow;
  const int lane = threadIdx.x % kWarp, place = lane % kPoints;
  const int given = int(flow.head.context) - 1, columns = given + kPreconditioned;
  const bool of_log = lane >= kPoints;
  SharedMemory memory(block_memory());
  const FlowMemory<P, kChange> m(flow.head, blockDim.x / kWarp, memory);
  m.points.load(flow.head);
  if (threadIdx.x == 0) *m.next = 0;
  __syncthreads();
  const Points<P, false, kChange> points(flow.head, m.points);
  double* own = m.own + threadIdx.x / kWarp * kOwn * kWarp + lane;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) own[i * kWarp] = 0;

  const int64_t first = flow.rows * blockIdx.x / gridDim.x;
  const unsigned count = unsigned(flow.rows * (blockIdx.x + 1) / gridDim.x - first);
  int64_t row = -1;  // none
  int attempt = 0;   // steps, taken or not
  float error = 0;
  double end = args.end;
  bool more = true;
#pragma unroll 1
  for (;;) {
    const unsigned idle = __ballot_sync(kAll, row < 0) & kFirsts;
    bool begins = false;
    if (more && idle != 0) {
      const unsigned wanted = __popc(idle);
      unsigned next = lane == 0 ? atomicAdd(m.next, wanted) : 0;
      next = __shfl_sync(kAll, next, 0);
      const unsigned mine = next + __popc(idle & ((1u << place) - 1));
      if (row < 0 && mine < count) {
        row = first + mine;
        attempt = 0;
        error = 0;
        own[kState * kWarp] = of_log ? 0. : double(read_parameter(flow.x, row, kBf16));
        double begin = args.begin;
        if constexpr (kPreconditioned) {
          const double of_tau = exp(double(read_parameter(flow.context, row * columns + given, kBf16)));
          begin = time_of(flow.sigma_from * of_tau), end = time_of(flow.sigma_to * of_tau);
        }
        own[kTime * kWarp] = begin;
        own[kStep * kWarp] = kFirstStep * (end - begin);
      }
      more = next + wanted < count;
      begins = next < count;
      if (begins) {
        const int64_t of_lane[2] = {__shfl_sync(kAll, row, lane / 4), __shfl_sync(kAll, row, lane / 4 + 8)};
        points.set_context(given, 0.f, [&](int i, int column) {
          const int64_t r = of_lane[i / 8];
          return r < 0 ? 0.f : read_parameter(flow.context, r * columns + column, kBf16);
        });
      }
    }
    if (__ballot_sync(kAll, row >= 0) == 0) break;

#pragma unroll 1
    for (int i = begins ? 0 : 1; i < kFlowStages; ++i) {
      const double x = own[kState * kWarp] + own[kStep * kWarp] * combined(args.line[i], own, i);
      const auto time = [&] { return own[kTime * kWarp] + args.time[i] * own[kStep * kWarp]; };
      const auto slope = [&](double speed, float s, float ds) {
        const bool unknown = i > 0 || attempt == 0;  // the first slope of a row on its way is known
        if (unknown) own[i * kWarp] = speed * double(of_log ? ds : -s);
      };
      float s, ds;
      if constexpr (kPreconditioned) {
        const auto [u, derivative] = squashed<P>(__shfl_sync(kAll, x, place), flow.squash);
        const float level = logf(float(time() * time() / ((1 - time()) * (1 + time()))));
        points.template evaluate<true>(u, level, s, ds);
        slope(2 * time() * weight_of(time() * time()), s, derivative * ds);
      } else {
        points.template evaluate<true>(__shfl_sync(kAll, float(x), place), 2 * logf(float(time())), s, ds);
        slope(2 * time(), s, ds);
      }
    }

    const double step = own[kStep * kWarp], time = own[kTime * kWarp], low = fmin(time, time + step);
    double off = fabs(step * combined(args.line[kFlowStages], own, kFlowStages));
    if (!of_log) off /= kPreconditioned ? low * low * sqrt(weight_of(low * low)) : low * low;
    const double other = __shfl_xor_sync(kAll, off, kPoints);
    const double off_x = of_log ? other : off, off_log = of_log ? off : other;
    off = off_x > off_log || off_x != off_x ? off_x : off_log;
    // No step is short enough where the first slope is no number.
    const bool lost = __ballot_sync(kAll, own[0] - own[0] != 0) >> place & kBoth;
    const bool taken = off <= flow.tolerance, last = step == end - time;
    if (taken) {
      own[kState * kWarp] += step * combined(args.line[kFlowStages - 1], own, kFlowStages - 1);
      own[kTime * kWarp] = last ? end : time + step;
      own[0] = own[(kFlowStages - 1) * kWarp];
      error += float(off);
    }
    ++attempt;
    const double left = end - own[kTime * kWarp];
    const double next = step * step_factor(off / flow.tolerance);
    own[kStep * kWarp] = fabs(next) >= 0.9999 * fabs(left) ? left : next;
    const bool arrived = taken && last;
    if (row >= 0 && (arrived || lost || attempt == kMaxSteps)) {
      const float value = arrived ? float(own[kState * kWarp]) : kNaN;
      static_cast<float*>(flow.out[of_log])[row] = value;
      if (!of_log) static_cast<float*>(flow.out[2])[row] = arrived ? error : kInfinity;
      row = -1;
    }
  }
}

template <Precision P, bool kChange>
int flow_bytes(const HeadArgs& head, int warps) {
  SharedMemory measure;
  const FlowMemory<P, kChange> memory(head, warps, measure);
  return measure.used();
}

template <Precision P, bool kChange, bool kPreconditioned>
void run(const RowsArgs& args, const Device& device) {
  const auto bytes = [&](int warps) { return flow_bytes<P, kChange>(args.flow.head, warps); };
  const int64_t tiles = (args.flow.rows + kPoints - 1) / kPoints, most = device.multiprocessors();
  const int warps = warps_that_fit(std::min<int64_t>(kMostWarps<P, kChange>, (tiles + most - 1) / most), bytes);
  const int64_t blocks = std::min((tiles + warps - 1) / warps, most);
  device.launch(probability_flow_kernel<P, kChange, kPreconditioned>, blocks, warps * kWarp, bytes(warps), args);
}

// Products are never of tf32: see fastcsm/ops/probability_flow.py.
template <class Function>
void with_full_precision(const HeadArgs& head, const Function& function) {
  with_precision(head, [&](auto precision) {
    constexpr bool kBf16 = decltype(precision)::value == Precision::bf16;
    function(PrecisionConstant<kBf16 ? Precision::bf16 : Precision::exact>());
  });
}

RowsArgs rows_args(const FlowArgs& flow) {
  RowsArgs args{flow, std::sqrt(flow.sigma_from), std::sqrt(flow.sigma_to), {}, {}};
  std::copy(std::begin(kFlowTimes), std::end(kFlowTimes), args.time);
  for (int i = 0; i < kFlowStages; ++i) std::copy(std::begin(kFlowStage[i]), std::end(kFlowStage[i]), args.line[i]);
  std::copy(std::begin(kFlowError), std::end(kFlowError), args.line[kFlowStages]);
  return args;
}

}  // namespace

int64_t probability_flow_bytes(const HeadArgs& head) {
  int64_t bytes = 0;
  with_full_precision(head, [&](auto precision) { bytes = flow_bytes<precision.value, true>(head, 1); });
  return bytes;
}

std::tuple<Tensor, Tensor, Tensor> probability_flow(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                    Tensor frequencies, int64_t activation, double sigma_from,
                                                    double sigma_to, double tolerance, bool change, double squash,
                                                    bool reduced) {
  FlowArgs a = flow_args(context, x, weights, biases, frequencies, activation, sigma_from, sigma_to, tolerance, change,
                         squash, reduced);
  const Device device(x);
  std::tuple<Tensor, Tensor, Tensor> out = new_flow(a, x);
  if (a.rows == 0) return out;
  if (sigma_from == sigma_to) {
    torch::stable::copy_(std::get<0>(out), x);
    torch::stable::zero_(std::get<1>(out));
    torch::stable::zero_(std::get<2>(out));
    return out;
  }
  const RowsArgs args = rows_args(a);
  with_full_precision(a.head, [&](auto precision) {
    if (squash > 0) {
      change ? run<precision.value, true, true>(args, device) : run<precision.value, false, true>(args, device);
    } else {
      change ? run<precision.value, true, false>(args, device) : run<precision.value, false, false>(args, device);
    }
  });
  return out;
}

}  // namespace fastcsm
