// One tile of rows through the score head and back (method.md, "The score head and its derivative in one pass").
// Rows of a tile are stacked [primal; tangent], so that each weight is read once for both. Hidden layer k keeps
//   zu  (2R, H_k)  f(a_k) above f'(a_k) t_k         de  (2R, H_k)  f'(a_k) above f''(a_k) t_k, later ga_k above gt_k
// Widths are padded to whole vectors; padded weights are zero, so padded columns add nothing and receive zero
// gradients. No include guard: included once per instruction set.

#include "cpu/storage.h"

template <class T>
constexpr int64_t padded(int64_t n) {
  return (n + Vec<T>::W - 1) / Vec<T>::W * Vec<T>::W;
}
// A row stride of an odd number of cache lines, so that a column of vectors spreads over all sets of the first-level
// cache.
template <class T>
constexpr int64_t stride(int64_t n) {
  const int64_t lines = (padded<T>(n) * int64_t(sizeof(T)) + 63) / 64;
  return (lines | 1) * 64 / int64_t(sizeof(T));
}
// The parameters, padded and laid out for the products of a tile.
template <class T>
struct Packed {
  HeadArgs head;
  int64_t C, F, E, K, H[kMaxLayers], P[kMaxLayers], ld[kMaxLayers], back[kMaxLayers], ld_in, ld_features;
  T* forward[kMaxLayers];   // panels of W_k^T (K rows = inputs), of the first layer the context's columns only
  T* backward[kMaxLayers];  // panels of W_k (K rows = outputs), the first back[k] columns
  T *features_forward, *features_backward;  // the same of the last F columns of W_1
  T* bias[kMaxLayers];
  T* x_weight;      // the column of W_1 that multiplies x
  T* stage_weight;  // the last context column, for a stage's own feature
  T *w_out, *frequency;
  T b_out;

  // With the backward pass of the hidden layers, and with that of so many inputs: none, the context, or all.
  void layout(const HeadArgs& args, Arena& arena, bool with_backward, int64_t with_inputs) {
    head = args;
    C = args.context, E = args.frequencies, F = args.features(), K = args.layers;
    ld_in = stride<T>(padded<T>(C) + padded<T>(F));
    ld_features = stride<T>(F);
    for (int64_t k = 0; k < K; ++k) {
      H[k] = args.width[k], P[k] = padded<T>(H[k]), ld[k] = stride<T>(H[k]);
      forward[k] = arena.take<T>(panels_size<T>(k == 0 ? C : H[k - 1], H[k]));
      back[k] = !with_backward ? 0 : k > 0 ? inputs(k) : with_inputs;
      backward[k] = back[k] > 0 ? arena.take<T>(panels_size<T>(H[k], back[k])) : nullptr;
      bias[k] = arena.take<T>(P[k]);
    }
    features_forward = arena.take<T>(panels_size<T>(F, H[0]));
    features_backward = with_inputs > C ? arena.take<T>(panels_size<T>(H[0], F)) : nullptr;
    x_weight = arena.take<T>(P[0]);
    stage_weight = arena.take<T>(P[0]);
    w_out = arena.take<T>(P[K - 1]);
    frequency = arena.take<T>(padded<T>(E));
  }
  int64_t inputs(int64_t k) const { return k == 0 ? C + F : H[k - 1]; }
  // Multiply-adds of one row's score.
  double products() const {
    int64_t count = H[K - 1];
    for (int64_t k = 0; k < K; ++k) count += inputs(k) * H[k];
    return static_cast<double>(count);
  }

  template <class S>
  static void pad(T* out, const void* from, int64_t n, int64_t step = 1) {
    for (int64_t j = 0; j < padded<T>(n); ++j)
      out[j] = j < n ? from_storage(static_cast<const S*>(from)[j * step]) : T(0);
  }
  template <class S>
  void fill() {
    const S* w1 = static_cast<const S*>(head.weight[0]);
    for (int64_t k = 0; k < K; ++k) {
      const S* w = static_cast<const S*>(head.weight[k]);
      const int64_t in = inputs(k);
#if !FASTCSM_REDUCED
      if constexpr (sizeof(S) == sizeof(T)) {
        pack_panels_of_columns(forward[k], k == 0 ? C : in, H[k], w, in);
        if (backward[k] != nullptr) pack_panels_of_rows(backward[k], H[k], back[k], w, in);
      } else
#endif
      {
        pack_panels(forward[k], k == 0 ? C : in, H[k],
                    [&](int64_t i, int64_t j) { return from_storage(w[j * in + i]); });
        if (backward[k] != nullptr)
          pack_panels(backward[k], H[k], back[k], [&](int64_t i, int64_t j) { return from_storage(w[i * in + j]); });
      }
      pad<S>(bias[k], head.bias[k], H[k]);
    }
    const auto feature = [&](int64_t f, int64_t j) { return from_storage(w1[j * (C + F) + C + f]); };
    pack_panels(features_forward, F, H[0], feature);
    if (features_backward != nullptr)
      pack_panels(features_backward, H[0], F, [&](int64_t j, int64_t f) { return feature(f, j); });
    pad<S>(x_weight, w1 + C, H[0], C + F);
    pad<S>(stage_weight, C > 0 ? w1 + C - 1 : w1, H[0], C + F);
    pad<S>(w_out, head.weight[K], H[K - 1]);
    pad<S>(frequency, head.frequency, E);
    b_out = from_storage(*static_cast<const S*>(head.bias[K]));
  }
};

// Packs a head of storage type S and owns the memory it lies in.
template <class S, class T>
struct PackedMemory {
  Scratch memory;

  PackedMemory(Packed<T>& head, const HeadArgs& args, bool with_backward, int64_t with_inputs)
      : memory(bytes(head, args, with_backward, with_inputs)) {
    Arena arena(memory.p);
    head.layout(args, arena, with_backward, with_inputs);
    head.template fill<S>();
  }
  static int64_t bytes(Packed<T>& head, const HeadArgs& args, bool with_backward, int64_t with_inputs) {
    Arena measure(nullptr);
    head.layout(args, measure, with_backward, with_inputs);
    return measure.bytes();
  }
};

// Rows a tile may have so that its activations stay well inside the second-level cache, in whole micro-kernels.
template <class T>
int64_t tile_rows(const Packed<T>& head, int64_t bytes) {
  int64_t row = head.ld_in + head.ld_features;
  for (int64_t k = 0; k < head.K; ++k) row += 4 * head.ld[k];
  const int64_t rows = bytes / (row * int64_t(sizeof(T))) / kMicroRows * kMicroRows;
  return rows < 2 * kMicroRows ? 2 * kMicroRows : rows > 96 ? 96 : rows;
}

template <class T>
struct Tile {
  int64_t rows;
  T *in, *tin;              // (R, C+F) context and features of x; (R, F) the features' derivative in x
  T *gin, *gfeatures;       // gradients with respect to in and tin
  T *x, *s, *ds, *gs, *gd;  // (R) input, score, derivative, and the loss's gradient with respect to both
  T *zu[kMaxLayers], *de[kMaxLayers];
  T* scratch;  // for products on pairs; the last array, since those may read past the end of a row

  void layout(const Packed<T>& head, Arena& arena, int64_t capacity, bool with_backward) {
    in = arena.take<T>(capacity * head.ld_in);
    tin = arena.take<T>(capacity * head.ld_features);
    gin = with_backward ? arena.take<T>(capacity * head.ld_in) : nullptr;
    gfeatures = with_backward ? arena.take<T>(capacity * head.ld_features) : nullptr;
    x = arena.take<T>(capacity), s = arena.take<T>(capacity), ds = arena.take<T>(capacity);
    gs = arena.take<T>(capacity), gd = arena.take<T>(capacity);
    for (int64_t k = 0; k < head.K; ++k) {
      zu[k] = arena.take<T>(2 * capacity * head.ld[k]);
      de[k] = with_backward ? arena.take<T>(2 * capacity * head.ld[k]) : nullptr;
    }
    int64_t widest = head.ld_in;
    for (int64_t k = 0; k < head.K; ++k) widest = head.ld[k] > widest ? head.ld[k] : widest;
    scratch = arena.take<T>(gemm_scratch<T>(2 * capacity, widest) + 64);
  }
};

// Features of x, [x, sin(w x), cos(w x)], into row; their derivatives too unless derivative is null.
template <class T>
void load_features(const Packed<T>& head, T x, T* row, T* derivative) {
  using V = Vec<T>;
  const int64_t E = head.E;
  row[0] = x;
  if (derivative != nullptr) derivative[0] = T(1);
  for (int64_t j = 0; j < E; j += V::W) {
    T sv[V::W], cv[V::W];
    V s, c;
    sincos_(V::load(head.frequency + j) * V(x), s, c);
    s.store(sv), c.store(cv);
    for (int64_t i = j; i < E && i < j + V::W; ++i) {
      row[1 + i] = sv[i - j];
      row[1 + E + i] = cv[i - j];
      if (derivative == nullptr) continue;
      derivative[1 + i] = head.frequency[i] * cv[i - j];
      derivative[1 + E + i] = -head.frequency[i] * sv[i - j];
    }
  }
}

// Copies rows [begin, begin + tile.rows) of context and x; padding is zeroed so that products may run over it. Without
// frequencies x itself is no column of the tile: a rank-one update in the activation pass costs less than a product.
template <class S, class T>
void load_rows(const Packed<T>& head, Tile<T>& tile, const S* context, const S* x, int64_t begin) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* in = tile.in + r * head.ld_in;
    T* tin = tile.tin + r * head.ld_features;
    const S* c = context + (begin + r) * head.C;
    for (int64_t j = 0; j < head.C; ++j) in[j] = from_storage(c[j]);
    for (int64_t j = head.C; j < head.ld_in; ++j) in[j] = T(0);
    for (int64_t j = head.F; j < head.ld_features; ++j) tin[j] = T(0);
    tile.x[r] = from_storage(x[begin + r]);
    if (head.F > 1) load_features(head, tile.x[r], in + head.C, tin);
  }
}

// What a forward pass is for: s; s and s'; s, s' and their backward pass; s and its own.
enum Keep { kValue, kTangent, kForBackward, kValueForBackward };
template <int kKeep>
constexpr bool kTangents = kKeep == kTangent || kKeep == kForBackward;

// From a (pre) above t (in zu), both without bias, and in the first layer of a head without frequencies without the x
// column, x_weight: f(a) above f'(a) t into zu, f' and f'' t for the backward pass, and in the last layer s and s'.
// Without tangents there is no t, and s' is 0.
template <class T, int A, int kKeep>
void activation_pass(const Packed<T>& head, Tile<T>& tile, int64_t k, const T* pre, const T* x_weight) {
  using V = Vec<T>;
  const int64_t R = tile.rows, ld = head.ld[k], P = head.P[k];
  const bool last = k == head.K - 1;
  const Value<T, A> value;
  for (int64_t r = 0; r < R; ++r) {
    T* z = tile.zu[k] + r * ld;
    T* u = z + R * ld;
    T* d_out = kKeep >= kForBackward ? tile.de[k] + r * ld : nullptr;
    T* e_out = kKeep == kForBackward ? d_out + R * ld : nullptr;
    const V xr(tile.x[r]);
    V s(0), ds(0);
    for (int64_t j = 0; j < P; j += V::W) {
      V a = V::load(pre + r * ld + j) + V::load(head.bias[k] + j), t, f, d, e;
      if (x_weight != nullptr) a += xr * V::load(x_weight + j);
      if constexpr (kKeep == kValue) {
        f = value(a);
      } else {
        activate<A>(a, f, d, e);
      }
      f.store(z + j);
      if constexpr (kTangents<kKeep>) {
        t = x_weight != nullptr ? V::load(x_weight + j) : V::load(u + j);
        (d * t).store(u + j);
      }
      if constexpr (kKeep >= kForBackward) d.store(d_out + j);
      if constexpr (kKeep == kForBackward) (e * t).store(e_out + j);
      if (last) {
        const V w = V::load(head.w_out + j);
        s += w * f;
        if constexpr (kTangents<kKeep>) ds += w * (d * t);
      }
    }
    if (last) {
      tile.s[r] = s.sum() + head.b_out;
      if constexpr (kKeep != kValue) tile.ds[r] = ds.sum();
    }
  }
}

template <class T, int kKeep>
void activation_pass(const Packed<T>& head, Tile<T>& tile, int64_t k, const T* pre, const T* x_weight) {
  FASTCSM_BY_ACTIVATION(head.head.activation, activation_pass<T, A, kKeep>(head, tile, k, pre, x_weight));
}

// Hidden layers after the first, from zu[0] on.
template <class T, int kKeep>
void forward_rest(const Packed<T>& head, Tile<T>& tile) {
  const int64_t stacked = kTangents<kKeep> ? 2 * tile.rows : tile.rows;
  for (int64_t k = 1; k < head.K; ++k) {
    gemm<T>(stacked, head.P[k], head.H[k - 1], tile.zu[k - 1], head.ld[k - 1], head.forward[k], nullptr, tile.zu[k],
            head.ld[k], tile.scratch);
    activation_pass<T, kKeep>(head, tile, k, tile.zu[k], nullptr);
  }
}

// Score and derivative of the rows loaded in the tile.
template <class T, int kKeep>
void forward_tile(const Packed<T>& head, Tile<T>& tile) {
  const int64_t R = tile.rows, P = head.P[0], ld = head.ld[0];
  gemm<T>(R, P, head.C, tile.in, head.ld_in, head.forward[0], nullptr, tile.zu[0], ld, tile.scratch);
  if (head.F > 1) {
    gemm<T>(R, P, head.F, tile.in + head.C, head.ld_in, head.features_forward, tile.zu[0], tile.zu[0], ld,
            tile.scratch);
    if (kTangents<kKeep>)
      gemm<T>(R, P, head.F, tile.tin, head.ld_features, head.features_forward, nullptr, tile.zu[0] + R * ld, ld,
              tile.scratch);
  }
  activation_pass<T, kKeep>(head, tile, 0, tile.zu[0], head.F == 1 ? head.x_weight : nullptr);
  forward_rest<T, kKeep>(head, tile);
}

// Parameter gradients summed over the rows of one task; fixed tasks added in a fixed order make the result the same for
// any number of threads.
template <class T>
struct Partial {
  T *weight[kMaxLayers + 1], *bias[kMaxLayers + 1];
  int64_t ld[kMaxLayers + 1];
  bool begun;  // whether the weights of layers between the first and the last have a sum yet

  void layout(const Packed<T>& head, Arena& arena) {
    begun = false;
    for (int64_t k = 0; k < head.K; ++k) {
      ld[k] = k == 0 ? head.ld_in : head.ld[k - 1];
      weight[k] = arena.take<T>(head.H[k] * ld[k]);
      bias[k] = arena.take<T>(head.P[k]);
    }
    ld[head.K] = head.P[head.K - 1];
    weight[head.K] = arena.take<T>(ld[head.K]);
    bias[head.K] = arena.take<T>(1);
  }
  void clear(const Packed<T>& head) {
    memset(weight[0], 0, head.H[0] * ld[0] * sizeof(T));
    memset(weight[head.K], 0, ld[head.K] * sizeof(T));
    for (int64_t k = 0; k <= head.K; ++k) memset(bias[k], 0, (k < head.K ? head.P[k] : 1) * sizeof(T));
  }
};

// ga_k above gt_k, into de[k], from gz_k above gu_k in zu[k] (in the last layer from gs, gd and the output weights);
// adds the bias gradient, in the last layer the output weights', and without frequencies that of the first layer's x
// column. Without tangents gd is 0, and there are no u, gt and gu.
template <class T, bool kSlope>
void gradient_pass(const Packed<T>& head, Tile<T>& tile, int64_t k, Partial<T>& sum, bool params) {
  using V = Vec<T>;
  const int64_t R = tile.rows, ld = head.ld[k], K = head.K;
  const bool last = k == K - 1;
  const bool x_column = params && k == 0 && head.F == 1;
  const T* z = tile.zu[k];
  const T* u = z + R * ld;
  T* d = tile.de[k];
  T* e = d + R * ld;
  for (int64_t j = 0; j < head.P[k]; j += V::W) {
    V gb(0), gw(0), gx(0);
    if (last) {
      const V w = V::load(head.w_out + j);
      for (int64_t r = 0; r < R; ++r) {
        const int64_t i = r * ld + j;
        const V g(tile.gs[r]), dv = V::load(d + i);
        if constexpr (!kSlope) {
          const V ga = w * (g * dv);
          gw += g * V::load(z + i);
          gb += ga;
          gx += ga * V(tile.x[r]);
          ga.store(d + i);
          continue;
        }
        const V p(tile.gd[r]);
        const V ga = w * (g * dv + p * V::load(e + i)), gt = w * (p * dv);
        gw += g * V::load(z + i) + p * V::load(u + i);
        gb += ga;
        gx += ga * V(tile.x[r]) + gt;
        ga.store(d + i), gt.store(e + i);
      }
    } else {
      for (int64_t r = 0; r < R; ++r) {
        const int64_t i = r * ld + j;
        const V gz = V::load(z + i), dv = V::load(d + i);
        if constexpr (!kSlope) {
          const V ga = dv * gz;
          gb += ga;
          gx += ga * V(tile.x[r]);
          ga.store(d + i);
          continue;
        }
        const V gu = V::load(u + i);
        const V ga = dv * gz + V::load(e + i) * gu, gt = dv * gu;
        gb += ga;
        gx += ga * V(tile.x[r]) + gt;
        ga.store(d + i), gt.store(e + i);
      }
    }
    if (!params) continue;
    (V::load(sum.bias[k] + j) + gb).store(sum.bias[k] + j);
    if (last) (V::load(sum.weight[K] + j) + gw).store(sum.weight[K] + j);
    if (x_column) {
      T column[V::W];
      gx.store(column);
      for (int64_t i = 0; i < V::W && j + i < head.H[0]; ++i) sum.weight[0][(j + i) * sum.ld[0] + head.C] += column[i];
    }
  }
}

// Gradients of the rows in the tile, given gs = dL/ds and gd = dL/ds', which is 0 without tangents. Adds to sum; writes
// rows of grad_context and grad_x.
template <class S, class T, bool kSlope>
void backward_tile(const Packed<T>& head, Tile<T>& tile, Partial<T>& sum, bool params, S* grad_context, S* grad_x,
                   int64_t begin) {
  const int64_t R = tile.rows, stacked = kSlope ? 2 * R : R, K = head.K, C = head.C, F = head.F;
  for (int64_t k = K - 1; k >= 0; --k) {
    gradient_pass<T, kSlope>(head, tile, k, sum, params);
    const T* ga = tile.de[k];
    const int64_t ld = head.ld[k];
    if (k > 0) {
      const int64_t below = head.ld[k - 1];
      if (params)
        gemm_tn<T>(head.H[k], head.P[k - 1], stacked, ga, ld, tile.zu[k - 1], below,
                   sum.begun ? sum.weight[k] : nullptr, sum.weight[k], sum.ld[k], tile.scratch);
      gemm<T>(stacked, head.P[k - 1], head.H[k], ga, ld, head.backward[k], nullptr, tile.zu[k - 1], below,
              tile.scratch);
    } else if (params) {
      gemm_tn<T>(head.H[0], padded<T>(F == 1 ? C : C + F), R, ga, ld, tile.in, head.ld_in, sum.weight[0], sum.weight[0],
                 sum.ld[0], tile.scratch);
      if (kSlope && F > 1)
        gemm_tn<T>(head.H[0], padded<T>(F), R, ga + R * ld, ld, tile.tin, head.ld_features, sum.weight[0] + C,
                   sum.weight[0] + C, sum.ld[0], tile.scratch);
    }
  }
  if (params) {
    for (int64_t r = 0; r < R; ++r) sum.bias[K][0] += tile.gs[r];
    sum.begun = true;
  }
  if (grad_context == nullptr && grad_x == nullptr) return;
  gemm<T>(R, padded<T>(grad_x != nullptr ? C + F : C), head.H[0], tile.de[0], head.ld[0], head.backward[0], nullptr,
          tile.gin, head.ld_in, tile.scratch);
  if (grad_context != nullptr) {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t j = 0; j < C; ++j) grad_context[(begin + r) * C + j] = to_storage<S>(tile.gin[r * head.ld_in + j]);
  }
  if (grad_x == nullptr) return;
  if (kSlope && F > 1)
    gemm<T>(R, padded<T>(F), head.H[0], tile.de[0] + R * head.ld[0], head.ld[0], head.features_backward, nullptr,
            tile.gfeatures, head.ld_features, tile.scratch);
  for (int64_t r = 0; r < R; ++r) {
    const T* ga_f = tile.gin + r * head.ld_in + C;
    T sum_x = ga_f[0];
    for (int64_t f = 1; f < F; ++f) {
      const T w =
          head.frequency[(f - 1) % head.E];  // the second derivative of sin(w x) and cos(w x) is -w^2 times itself
      sum_x += ga_f[f] * tile.tin[r * head.ld_features + f];
      if constexpr (kSlope)
        sum_x -= tile.gfeatures[r * head.ld_features + f] * (w * w * tile.in[r * head.ld_in + C + f]);
    }
    grad_x[begin + r] = to_storage<S>(sum_x);
  }
}
