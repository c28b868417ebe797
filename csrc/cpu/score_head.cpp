// (s, s') for every row in one pass, and the backward pass for any upstream pair, which recomputes the forward tile by
// tile.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/score_head.cpp"
#include <cstring>
#include <tuple>

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
#include "cpu/rows.h"

template <class S, class T>
struct ForwardRows {
  Tile<T> tile;

  static double scores(const ScoreHeadArgs& a) { return a.derivative != nullptr ? 2 : 1; }
  static int64_t capacity(const Packed<T>& head, int64_t share) { return shared_rows(head, share, kTileBytes); }
  void layout(const Packed<T>& head, Arena& arena, int64_t rows) { tile.layout(head, arena, rows, false); }

  void run(const ScoreHeadArgs& a, const Packed<T>& head, int64_t begin, int64_t rows) {
    tile.rows = rows;
    load_rows(head, tile, static_cast<const S*>(a.context), static_cast<const S*>(a.x), begin);
    if (a.derivative != nullptr) {
      forward_tile<T, kTangent>(head, tile);
    } else {
      forward_tile<T, kValue>(head, tile);
    }
    for (int64_t r = 0; r < rows; ++r) {
      static_cast<S*>(a.score)[begin + r] = to_storage<S>(tile.s[r]);
      if (a.derivative != nullptr) static_cast<S*>(a.derivative)[begin + r] = to_storage<S>(tile.ds[r]);
    }
  }
};

void score_head_kernel(const ScoreHeadArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() { run_rows<S, T, ForwardRows<S, T>>(a); });
}

template <class S, class T>
bool given_tangents(const void* job, Tile<T>& tile, int64_t begin) {
  const ScoreHeadBackwardArgs& a = *static_cast<const ScoreHeadBackwardArgs*>(job);
  bool any = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    tile.gd[r] = from_storage(static_cast<const S*>(a.grad_derivative)[begin + r]);
    any |= tile.gd[r] != T(0);
  }
  return any;
}

template <class S, class T>
double given_upstream(const void* job, Tile<T>& tile, int64_t begin) {
  const ScoreHeadBackwardArgs& a = *static_cast<const ScoreHeadBackwardArgs*>(job);
  for (int64_t r = 0; r < tile.rows; ++r) tile.gs[r] = from_storage(static_cast<const S*>(a.grad_score)[begin + r]);
  return 0;
}

void score_head_backward_kernel(const ScoreHeadBackwardArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() {
    GradientRows<S, T> rows{static_cast<const S*>(a.context),
                            static_cast<const S*>(a.x),
                            a.rows,
                            a.out,
                            given_tangents<S, T>,
                            given_upstream<S, T>,
                            &a};
    rows.run(a.head);
  });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

std::tuple<Tensor, Tensor> score_head(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                      int64_t activation, bool derivative, bool reduced) {
  ScoreHeadArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  Tensor score = new_like(x), slope = derivative ? new_like(x) : new_tensor(x, {0});
  a.score = score.mutable_data_ptr();
  a.derivative = derivative ? slope.mutable_data_ptr() : nullptr;
  FASTCSM_DISPATCH(score_head_kernel, uses_pairs(a.head), a);
  return {score, slope};
}

std::tuple<Tensor, Tensor, Tensors, Tensors> score_head_backward(Tensor grad_score, Tensor grad_derivative,
                                                                 Tensor context, Tensor x, Tensors weights,
                                                                 Tensors biases, Tensor frequencies, int64_t activation,
                                                                 bool need_context, bool need_x, bool need_params,
                                                                 bool reduced) {
  ScoreHeadBackwardArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  a.grad_score = checked(grad_score, "grad_score", x.scalar_type(), a.rows);
  a.grad_derivative = checked(grad_derivative, "grad_derivative", x.scalar_type(), a.rows);
  GradientTensors g = new_gradients(context, x, weights, biases, need_context, need_x, need_params);
  a.out = g.pointers;
  FASTCSM_DISPATCH(score_head_backward_kernel, uses_pairs(a.head), a);
  return {g.context, g.x, g.weights, g.biases};
}

}  // namespace fastcsm
#endif
