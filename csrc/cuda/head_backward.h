// The head's backward pass on a tile: products with G = [ga; gt], and what a warp does to its part of a layer.
#pragma once

#include "cuda/head.h"

namespace fastcsm {

// Adds the sums over rows of the warp's columns, v[2 n + i] of column_of(n, i), to `sum` of the lane whose column it
// is.
FASTCSM_INLINE void add_column_sums(float (&v)[2 * kTiles], int lane, float* sum) {
  static_assert(kTiles == 4);
#pragma unroll
  for (int half = kTiles; half > 0; half /= 2) {
    const bool upper = lane & 4 * half;
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const float mine = upper ? v[half + j] : v[j], other = upper ? v[j] : v[half + j];
      v[j] = mine + __shfl_xor_sync(0xffffffffu, other, 4 * half);
    }
  }
  *sum += v[0];
}

// [gz; gu] = G W of the warp's rows and kColumns columns of W.
template <Precision P>
FASTCSM_INLINE void product_backward(Pair& out, const Place& at, const Element<P>* g, const Element<P>* w) {
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<Element<P>>;
  const Element<P>* primal = g + at.row * kStride;
  const Element<P>* tangent = primal + kRows * kStride;
#pragma unroll 1
  for (int k = 0; k < kUnits; k += kStep) {
    FragmentA a, t;
    load_a(a, primal + k, kStride, at.lane);
    load_a(t, tangent + k, kStride, at.lane);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      FragmentB b[2];
      load_b(b, w + k * kStride + at.column + n * 8, kStride, at.lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add<P>(out.a[n + i], a, b[i]);
        multiply_add<P>(out.t[n + i], t, b[i]);
      }
    }
  }
}

// out += G^T Z: 16 M units of G, 8 kWide of at most `columns` columns of Z, over the 2 kRows rows; the tangent's
// columns before `tangent_from` are zero. Exact products sum a tile of rows on its own, as matrix units round long sums
// towards zero.
template <Precision P, int M, int kWide>
FASTCSM_INLINE void add_outer(Accumulator (&out)[M][kWide], const Place& at, const Element<P>* g, const Element<P>* z,
                              int z_stride, int columns, int tangent_from) {
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<Element<P>>;
  constexpr bool kApart = P == Precision::exact;
  constexpr int kDown = kApart ? 1 : M, kAcross = kApart ? 2 : kWide;  // accumulators that one loop over rows fills
#pragma unroll
  for (int m0 = 0; m0 < M; m0 += kDown) {
#pragma unroll
    for (int n0 = 0; n0 < kWide; n0 += kAcross) {
      Accumulator sum[kDown][kAcross] = {};
#pragma unroll 1
      for (int k = 0; k < 2 * kRows; k += kStep) {
        FragmentA a[kDown];
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
          load_a_transposed(a[m], g + k * kStride + 16 * (m0 + m), kStride, at.lane);
        }
#pragma unroll
        for (int n = 0; n < kAcross; n += 2) {
          const int column = 8 * (n0 + n);
          if (column >= columns || (k >= kRows && column + 16 <= tangent_from)) continue;
          FragmentB b[2];
          load_b(b, z + k * z_stride + column, z_stride, at.lane);
#pragma unroll
          for (int m = 0; m < kDown; ++m) {
            multiply_add<P>(kApart ? sum[m][n] : out[m][n], a[m], b[0]);
            multiply_add<P>(kApart ? sum[m][n + 1] : out[m][n + 1], a[m], b[1]);
          }
        }
      }
#pragma unroll
      for (int i = 0; kApart && i < 4 * kAcross; ++i) out[m0][n0 + i / 4].r[i % 4] += sum[0][i / 4].r[i % 4];
    }
  }
}

// ga and gt of the last layer in place of its a and t, from g and p of the rows; adds to the sums of w_o's gradient.
FASTCSM_INLINE void output_backward(Pair& layer, const Place& at, int activation, const float* output,
                                    const float (&g)[2], const float (&p)[2], float* output_sum) {
  float sums[2 * kTiles] = {};
  with_activation(activation, [&](auto code) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float f, d, e;
        const float t = layer.t[n].r[i], w = output[at.column_of(n, i)];
        const float gz = g[i / 2] * w, gu = p[i / 2] * w;
        activate<code.value>(layer.a[n].r[i], f, d, e);
        sums[2 * n + i % 2] += g[i / 2] * f + p[i / 2] * (d * t);
        layer.a[n].r[i] = d * gz + e * t * gu;
        layer.t[n].r[i] = d * gu;
      }
    }
  });
  add_column_sums(sums, at.lane, output_sum);
}

// ga and gt of a layer in place of gz and gu, from its a and t.
FASTCSM_INLINE void activation_backward(Pair& grad, const Pair& layer, int activation) {
  with_activation(activation, [&](auto code) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float f, d, e;
        const float gz = grad.a[n].r[i], gu = grad.t[n].r[i];
        activate<code.value>(layer.a[n].r[i], f, d, e);
        grad.a[n].r[i] = d * gz + e * layer.t[n].r[i] * gu;
        grad.t[n].r[i] = d * gu;
      }
    }
  });
}

// The warp's part of [ga; gt] to rows of g (2 kRows, kUnits).
template <Precision P>
FASTCSM_INLINE void store_gradient(const Pair& grad, const Place& at, Element<P>* g) {
  constexpr int kStride = Head<P>::kStride;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      Element<P>* p = g + at.row_of(i) * kStride + at.column_of(n, 0);
      store_pair<P>(p, grad.a[n].r[i], grad.a[n].r[i + 1]);
      store_pair<P>(p + kRows * kStride, grad.t[n].r[i], grad.t[n].r[i + 1]);
    }
  }
}

FASTCSM_INLINE void add_bias_sums(const Pair& grad, const Place& at, float* sum) {
  float sums[2 * kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[2 * n + i] = grad.a[n].r[i] + grad.a[n].r[i + 2];
  }
  add_column_sums(sums, at.lane, sum);
}

}  // namespace fastcsm
