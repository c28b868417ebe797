// Rows carried from one noise level to another along the probability flow, block by block.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/probability_flow.cpp"
#include <cmath>
#include <cstring>
#include <tuple>

#include "common/flow.h"
#include "common/ops.h"
#include "cpu/launch.h"
#include "cpu/foreach_isa.h"
#endif

#if !FASTCSM_LAUNCHER
namespace fastcsm::FASTCSM_ISA {
namespace {

#include "cpu/simd.h"
#include "cpu/gemm.h"
#include "cpu/head.h"
#include "cpu/points.h"
#include "cpu/flow.h"

template <class S, class T>
struct FlowRows {
  const FlowArgs& a;
  Packed<T> head;
  int64_t capacity, scratch_bytes;
  char* scratch;

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& f = *static_cast<const FlowRows*>(self);
    const FlowArgs& a = f.a;
    Arena arena(f.scratch + worker * f.scratch_bytes);
    Points<T> points;
    FlowBlock<T> block;
    f.layout(points, block, arena);
    const int64_t begin = task * f.capacity, rows = a.rows - begin < f.capacity ? a.rows - begin : f.capacity;
    const int64_t given = f.head.C - 1;
    const S* context = static_cast<const S*>(a.context) + begin * given;
    points.set_context(rows, given, [&](int64_t r, int64_t j) { return from_storage(context[r * given + j]); });
    for (int64_t r = 0; r < rows; ++r)
      block.row[r].x = static_cast<double>(from_storage(static_cast<const S*>(a.x)[begin + r]));
    if (a.change) {
      block.template solve<kTangent>(rows, a.sigma_from, a.sigma_to, a.tolerance);
    } else {
      block.template solve<kValue>(rows, a.sigma_from, a.sigma_to, a.tolerance);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double values[3] = {block.row[r].x, block.row[r].change, block.row[r].error};
      for (int i = 0; i < 3; ++i) static_cast<T*>(a.out[i])[begin + r] = static_cast<T>(values[i]);
    }
  }

  void layout(Points<T>& points, FlowBlock<T>& block, Arena& arena) const {
    points.layout(head, arena, capacity, capacity);
    block.layout(points, arena, capacity);
  }

  void run() {
    const PackedMemory<S, T> weights(head, a.head, false);
    const int64_t share = (a.rows + workers() - 1) / workers(), fits = tile_rows(head, int64_t(200) << 10);
    capacity = share < fits ? share : fits;
    Arena measure(nullptr);
    Points<T> points;
    FlowBlock<T> block;
    layout(points, block, measure);
    scratch_bytes = measure.bytes();
    Scratch memory(scratch_bytes * workers());
    scratch = static_cast<char*>(memory.p);
    run_tasks((a.rows + capacity - 1) / capacity, task, this);
  }
};

template <class S, class T>
void flow_typed(const FlowArgs& a) {
  if (a.rows > 0) FlowRows<S, T>{a, {}, 0, 0, nullptr}.run();
}

void probability_flow_kernel(const FlowArgs& a) {
  if (a.head.storage == Storage::f32) return flow_typed<float, float>(a);
  if (a.head.storage == Storage::bf16) return flow_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  flow_typed<double, double>(a);
#endif
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

std::tuple<Tensor, Tensor, Tensor> probability_flow(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                    Tensor frequencies, int64_t activation, double sigma_from,
                                                    double sigma_to, double tolerance, bool change, bool reduced) {
  FlowArgs a =
      flow_args(context, x, weights, biases, frequencies, activation, sigma_from, sigma_to, tolerance, change, reduced);
  std::tuple<Tensor, Tensor, Tensor> out = new_flow(a, x);
  FASTCSM_DISPATCH(probability_flow_kernel, uses_pairs(a.head), a);
  return out;
}

}  // namespace fastcsm
#endif
