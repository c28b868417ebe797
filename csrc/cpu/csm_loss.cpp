// Sum over rows of alpha s^2/2 + beta s' + gamma s, and its gradient with respect to everything, in one pass over the
// rows. With the coefficients known, dL/ds = alpha s + gamma and dL/ds' = beta are known as soon as s is: each tile of
// rows goes forward and back while it lies in cache, and no activation outlives its tile.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/csm_loss.cpp"
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

template <class T>
bool csm_tangents(const void* job, Tile<T>& tile, int64_t begin) {
  const CsmLossArgs& a = *static_cast<const CsmLossArgs*>(job);
  bool any = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    tile.gd[r] = static_cast<const T*>(a.beta)[(begin + r) * a.beta_step];
    any |= tile.gd[r] != T(0);
  }
  return any;
}

template <class T>
double csm_upstream(const void* job, Tile<T>& tile, int64_t begin) {
  const CsmLossArgs& a = *static_cast<const CsmLossArgs*>(job);
  double loss = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t n = begin + r;
    const T alpha = static_cast<const T*>(a.alpha)[n * a.alpha_step];
    const T gamma = static_cast<const T*>(a.gamma)[n * a.gamma_step];
    const T s = tile.s[r];
    tile.gs[r] = alpha * s + gamma;
    loss += s * (T(0.5) * alpha * s + gamma) + tile.gd[r] * tile.ds[r];
  }
  return loss;
}

void csm_loss_kernel(CsmLossArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() {
    GradientRows<S, T> rows{static_cast<const S*>(a.context),
                            static_cast<const S*>(a.x),
                            a.rows,
                            a.out,
                            csm_tangents<T>,
                            csm_upstream<T>,
                            &a};
    a.loss = rows.run(a.head);
  });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors> csm_loss(Tensor context, Tensor x, Tensors weights, Tensors biases,
                                                              Tensor frequencies, int64_t activation, Tensor alpha,
                                                              Tensor beta, Tensor gamma, bool need_context, bool need_x,
                                                              bool need_params, bool reduced) {
  CsmLossArgs a{};
  set_rows(a, context, x, weights, biases, frequencies, activation, reduced);
  set_coefficients(a, x, alpha, beta, gamma);
  GradientTensors g = new_gradients(context, x, weights, biases, need_context, need_x, need_params);
  a.out = g.pointers;
  FASTCSM_DISPATCH(csm_loss_kernel, uses_pairs(a.head), a);
  Tensor loss = new_tensor(alpha, {}, compute_type(x));
  if (a.head.storage == Storage::f64) {
    *static_cast<double*>(loss.mutable_data_ptr()) = a.loss;
  } else {
    *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(a.loss);
  }
  return {loss, g.context, g.x, g.weights, g.biases};
}

}  // namespace fastcsm
#endif
