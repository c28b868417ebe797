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
#include "cpu/rows.h"

template <class S, class T>
struct ForwardRows {
  const ScoreHeadArgs& a;
  Packed<T> head;
  int64_t capacity, tile_bytes;
  char* tiles;

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& f = *static_cast<const ForwardRows*>(self);
    Arena arena(f.tiles + worker * f.tile_bytes);
    Tile<T> tile;
    tile.layout(f.head, arena, f.capacity, false);
    const int64_t begin = task * f.capacity;
    tile.rows = f.a.rows - begin < f.capacity ? f.a.rows - begin : f.capacity;
    load_rows(f.head, tile, static_cast<const S*>(f.a.context), static_cast<const S*>(f.a.x), begin);
    if (f.a.derivative != nullptr) {
      forward_tile<T, kTangent>(f.head, tile);
    } else {
      forward_tile<T, kValue>(f.head, tile);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      static_cast<S*>(f.a.score)[begin + r] = to_storage<S>(tile.s[r]);
      if (f.a.derivative != nullptr) static_cast<S*>(f.a.derivative)[begin + r] = to_storage<S>(tile.ds[r]);
    }
  }

  void run() {
    const PackedMemory<S, T> weights(head, a.head, false);
    capacity = tile_rows(head, kTileBytes);
    Arena measure(nullptr);
    Tile<T>().layout(head, measure, capacity, false);
    tile_bytes = measure.bytes();
    Scratch memory(tile_bytes * workers());
    tiles = static_cast<char*>(memory.p);
    run_tasks((a.rows + capacity - 1) / capacity, task, this);
  }
};

template <class S, class T>
void score_head_typed(const ScoreHeadArgs& a) {
  ForwardRows<S, T>{a, {}, 0, 0, nullptr}.run();
}

void score_head_kernel(const ScoreHeadArgs& a) {
  if (a.head.storage == Storage::f32) return score_head_typed<float, float>(a);
  if (a.head.storage == Storage::bf16) return score_head_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  score_head_typed<double, double>(a);
#endif
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

template <class S, class T>
void score_head_backward_typed(const ScoreHeadBackwardArgs& a) {
  GradientRows<S, T> rows;
  rows.context = static_cast<const S*>(a.context);
  rows.x = static_cast<const S*>(a.x);
  rows.N = a.rows;
  rows.out = a.out;
  rows.tangents = given_tangents<S, T>;
  rows.upstream = given_upstream<S, T>;
  rows.job = &a;
  rows.run(a.head);
}

void score_head_backward_kernel(const ScoreHeadBackwardArgs& a) {
  if (a.head.storage == Storage::f32) return score_head_backward_typed<float, float>(a);
  if (a.head.storage == Storage::bf16) return score_head_backward_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  score_head_backward_typed<double, double>(a);
#endif
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

std::tuple<Tensor, Tensor> score_head(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                      int64_t activation, bool derivative, bool reduced) {
  ScoreHeadArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  Tensor score = torch::stable::empty_like(x), slope = torch::stable::new_empty(x, {derivative ? a.rows : 0});
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
