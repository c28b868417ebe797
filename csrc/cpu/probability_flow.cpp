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
#include "cpu/row_tasks.h"
#include "cpu/points.h"
#include "cpu/preconditioning.h"
#include "cpu/flow.h"

template <class S, class T>
struct FlowRows {
  Points<T> points;
  FlowBlock<T> block;

  static double scores(const FlowArgs& a) { return kFlowStages * (a.change ? 2 : 1); }
  static int64_t capacity(const Packed<T>& head, int64_t share) { return shared_rows(head, share); }
  void layout(const Packed<T>& head, Arena& arena, int64_t rows) {
    points.layout(head, arena, rows, rows);
    block.layout(points, arena, rows);
  }

  void run(const FlowArgs& a, const Packed<T>& head, int64_t begin, int64_t rows) {
    load_contexts<S>(points, a.context, begin, rows, head.C - (a.squash == 0));
    for (int64_t r = 0; r < rows; ++r) {
      block.row[r].x = static_cast<double>(from_storage(static_cast<const S*>(a.x)[begin + r]));
      block.row[r].offset = a.squash > 0 ? offset_of<S>(a.context, begin + r, head.C) : 0;
    }
    const FlowOptions options{a.sigma_from, a.sigma_to, a.tolerance, a.squash};
    if (a.change) {
      block.template solve<kTangent>(rows, options);
    } else {
      block.template solve<kValue>(rows, options);
    }
    for (int64_t r = 0; r < rows; ++r)
      store_row<T>(a.out, begin + r, {block.row[r].x, block.row[r].change, block.row[r].error});
  }
};

void probability_flow_kernel(const FlowArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() { run_rows<S, T, FlowRows<S, T>>(a); });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

std::tuple<Tensor, Tensor, Tensor> probability_flow(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                    Tensor frequencies, int64_t activation, double sigma_from,
                                                    double sigma_to, double tolerance, bool change, double squash,
                                                    bool reduced) {
  FlowArgs a = flow_args(context, x, weights, biases, frequencies, activation, sigma_from, sigma_to, tolerance, change,
                         squash, reduced);
  std::tuple<Tensor, Tensor, Tensor> out = new_flow(a, x);
  FASTCSM_DISPATCH(probability_flow_kernel, uses_pairs(a.head), a);
  return out;
}

}  // namespace fastcsm
#endif
