// The head's backward pass on a tile: products with G = [ga; gt], and what a warp does to its part of a layer.
#pragma once

#include "cuda/head.h"

namespace fastcsm {

// Adds the sums over rows of the warp's columns, v[2 n + i] of column_of(n, i), to `sum` of the lane whose column it
// is: column_of_sum's.
template <int kRows>
FASTCSM_INLINE void add_column_sums(float (&v)[2 * kTiles<kRows>], int lane, float* sum) {
#pragma unroll
  for (int half = kTiles<kRows>; half > 0; half /= 2) {
    const bool upper = lane & 4 * half;
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const float mine = upper ? v[half + j] : v[j], other = upper ? v[j] : v[half + j];
      v[j] = mine + __shfl_xor_sync(0xffffffffu, other, 4 * half);
    }
  }
#pragma unroll
  for (int lanes = 8 * kTiles<kRows>; lanes < kWarp; lanes *= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], lanes);
  if (lane < 8 * kTiles<kRows>) *sum += v[0];
}
template <int kRows>
FASTCSM_INLINE int column_of_sum(const Place<kRows>& at) {
  return at.column_of(at.lane / 8 % kTiles<kRows>, at.lane / 4);
}

// kTogether operands whose sums run over the rows of a matrix with its columns at the places of place_of. A: 16
// columns, rows one below the other. B: 8 columns, likewise. Of eight rows of float32 the even ones are t, the odd ones
// t + 4, as the columns of G are that load_a reads.
template <Precision P>
FASTCSM_INLINE void load_columns_a(FragmentA<P> (&a)[kTogether<P>], const Element<P>* p, int stride, int lane) {
  if constexpr (P == Precision::bf16) {
#pragma unroll
    for (int k = 0; k < 2; ++k) load_a_transposed(a[k], p + k * kDepth<P> * stride, stride, lane);
  } else {
    constexpr int kWords = kDepth<P> / 2;
    const float* q = p + lane % 4 * 2 * stride + place_of<float>(lane / 4);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a[i / kWords].r[i % kWords] = __float_as_uint(q[(i / 4 * 8 + i / 2 % 2) * stride + i % 2 * 8]);
    }
  }
}
template <Precision P>
FASTCSM_INLINE void load_columns_b(FragmentB<P> (&b)[kTogether<P>], const Element<P>* p, int stride, int lane) {
  constexpr int kWords = 4 / kTogether<P>;
  uint32_t r[4];
  if constexpr (P == Precision::bf16) {
    load_matrices<true>(r, p + lane * stride);
  } else {
    const float* q = p + lane % 4 * 2 * stride + place_of<float>(lane / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = __float_as_uint(q[(i / 2 * 8 + i % 2) * stride]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / kWords].r[i % kWords] = r[i];
}

// [gz; gu] = G W of the warp's rows and columns of W, beginning with its own columns of G and with a barrier in here,
// as product_forward.
template <Precision P, int kRows>
FASTCSM_INLINE void product_backward(Pair<kRows>& out, const Place<kRows>& at, const Pair<kRows>& own,
                                     const Element<P>* g, const Element<P>* w) {
  constexpr int kStride = Head<P>::kStride, kStep = kDepth<P>, kTwo = kTogether<P>;
  const auto add_steps = [&](const FragmentA<P>(&a)[kTwo], const FragmentA<P>(&t)[kTwo], int k) {
    OperandA<P> of_a[kTwo], of_t[kTwo];
#pragma unroll
    for (int i = 0; i < kTwo; ++i) of_a[i] = OperandA<P>(a[i]), of_t[i] = OperandA<P>(t[i]);
#pragma unroll
    for (int n = 0; n < kTiles<kRows>; ++n) {
      FragmentB<P> b[kTwo];
      load_columns_b<P>(b, w + k * kStride + at.column + n * 8, kStride, at.lane);
#pragma unroll
      for (int i = 0; i < kTwo; ++i) {
        const OperandB<P> of_w(b[i]);
        multiply_add(out.a[n], of_a[i], of_w);
        multiply_add(out.t[n], of_t[i], of_w);
      }
    }
  };
  if constexpr (kOwnColumns<P, kRows> > 0) {
#pragma unroll
    for (int k = 0; k < kOwnColumns<P, kRows>; k += 2 * kStep) {
      const int n = k / 8, next = n + kStep / 8;
      add_steps({as_operand<P>(own.a, n), as_operand<P>(own.a, next)},
                {as_operand<P>(own.t, n), as_operand<P>(own.t, next)}, at.column + k);
    }
  }
  __syncthreads();
  const Element<P>* primal = g + at.row * kStride;
  const Element<P>* tangent = primal + kRows * kStride;
#pragma unroll 1
  for (int from = kOwnColumns<P, kRows>; from < kUnits; from += kTwo * kStep) {
    const int k = (at.column + from) % kUnits;
    FragmentA<P> a[kTwo], t[kTwo];
#pragma unroll
    for (int i = 0; i < kTwo; ++i) {
      load_a(a[i], primal + k + i * kStep, kStride, at.lane);
      load_a(t[i], tangent + k + i * kStep, kStride, at.lane);
    }
    add_steps(a, t, k);
  }
}

// out += G^T Z: 16 M units of G, and of Z a tile of 8 columns of every group of kApart, kWide of them or as many groups
// as start before `columns`, over the 2 kRows rows; the tangent's columns before `tangent_from` are zero. Exact
// products sum a tile of rows on its own, as matrix units round long sums towards zero.
template <Precision P, int kApart, int kRows, int M, int kWide>
FASTCSM_INLINE void add_outer(Accumulator (&out)[M][kWide], const Place<kRows>& at, const Element<P>* g,
                              const Element<P>* z, int z_stride, int columns, int tangent_from) {
  constexpr int kStride = Head<P>::kStride, kTwo = kTogether<P>, kStep = kTwo * kDepth<P>;
  constexpr bool kOwn = P == Precision::exact;
  constexpr int kDown = kOwn ? 1 : M, kAcross = kOwn ? 2 : kWide;  // accumulators that one loop over rows fills
#pragma unroll
  for (int m0 = 0; m0 < M; m0 += kDown) {
#pragma unroll
    for (int n0 = 0; n0 < kWide; n0 += kAcross) {
      Accumulator sum[kDown][kAcross] = {};
#pragma unroll 1
      for (int k = 0; k < 2 * kRows; k += kStep) {
        OperandA<P> of_g[kDown][kTwo];
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
          FragmentA<P> a[kTwo];
          load_columns_a<P>(a, g + k * kStride + 16 * (m0 + m), kStride, at.lane);
#pragma unroll
          for (int i = 0; i < kTwo; ++i) of_g[m][i] = OperandA<P>(a[i]);
        }
#pragma unroll
        for (int n = 0; n < kAcross && n0 + n < kWide; ++n) {
          const int column = 8 * kApart * (n0 + n);
          if (column >= columns || (k >= kRows && column + 8 * kApart <= tangent_from)) continue;
          FragmentB<P> b[kTwo];
          load_columns_b<P>(b, z + k * z_stride + column, z_stride, at.lane);
          OperandB<P> of_z[kTwo];
#pragma unroll
          for (int i = 0; i < kTwo; ++i) of_z[i] = OperandB<P>(b[i]);
#pragma unroll
          for (int m = 0; m < kDown; ++m) {
#pragma unroll
            for (int i = 0; i < kTwo; ++i) multiply_add(kOwn ? sum[m][n] : out[m][n], of_g[m][i], of_z[i]);
          }
        }
      }
#pragma unroll
      for (int i = 0; kOwn && i < 4 * kAcross && n0 + i / 4 < kWide; ++i) {
        out[m0][n0 + i / 4].r[i % 4] += sum[0][i / 4].r[i % 4];
      }
    }
  }
}

// ga and gt of the last layer in place of f'(a) and f''(a) t, from g and p of the rows; adds to the sums of w_o's
// gradient.
template <int kRows>
FASTCSM_INLINE void output_backward(Pair<kRows>& layer, const Pair<kRows>& value, const Place<kRows>& at,
                                    const float* output, const float (&g)[2], const float (&p)[2], float* output_sum) {
  float sums[2 * kTiles<kRows>] = {};
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float w = output[at.column_of(n, i)], d = layer.a[n].r[i], et = layer.t[n].r[i];
      sums[2 * n + i % 2] += g[i / 2] * value.a[n].r[i];
      sums[2 * n + i % 2] += p[i / 2] * value.t[n].r[i];
      layer.a[n].r[i] = w * (d * g[i / 2] + et * p[i / 2]);
      layer.t[n].r[i] = w * (d * p[i / 2]);
    }
  }
  add_column_sums<kRows>(sums, at.lane, output_sum);
}

// ga and gt of a layer in place of gz and gu, from its f'(a) and f''(a) t.
template <int kRows>
FASTCSM_INLINE void activation_backward(Pair<kRows>& grad, const Pair<kRows>& layer) {
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float gu = grad.t[n].r[i];
      grad.a[n].r[i] = layer.a[n].r[i] * grad.a[n].r[i] + layer.t[n].r[i] * gu;
      grad.t[n].r[i] = layer.a[n].r[i] * gu;
    }
  }
}

template <int kRows>
FASTCSM_INLINE void add_bias_sums(const Pair<kRows>& grad, const Place<kRows>& at, float* sum) {
  float sums[2 * kTiles<kRows>];
#pragma unroll
  for (int n = 0; n < kTiles<kRows>; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[2 * n + i] = grad.a[n].r[i] + grad.a[n].r[i + 2];
  }
  add_column_sums<kRows>(sums, at.lane, sum);
}

}  // namespace fastcsm
