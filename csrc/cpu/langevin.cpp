// x <- x + (e_i / 2) k_i s(c, x) + sqrt(e_i) z, every stage and step of a block of rows before the next block is
// touched; of a preconditioned head the state is y, in units of tau. The context's share of the first layer is computed
// once; a stage's own feature (log sigma_i) only shifts it. Noise comes from Philox, keyed by the seed and counted by
// (sample, dimension, step), so a block's place and thread do not matter.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/langevin.cpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "common/draw_args.h"
#include "common/ops.h"
#include "common/philox.h"
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
#include "cpu/preconditioning.h"
#include "cpu/draw.h"

constexpr int64_t kUnasked = 16;  // steps between two questions whether to stop

// A block of rows with their contexts, on its way through the stages.
template <class T>
struct Chain {
  const Packed<T>* head;
  Tile<T> tile;
  T *base, *shifted;  // (R, H_1) the context's share of a_1; with the stage's feature added
  T *u1, *u2;         // (R) uniforms
  double u0;          // of a preconditioned head, which alone has this and what follows
  double* offset;     // (R) -ln(tau)
  T *y, *rate;        // (R) the state, and 1 / tau
  T *rho, *kappa;     // (R) at the stage's level

  void layout(const Packed<T>& h, Arena& arena, int64_t capacity) {
    head = &h;
    tile.layout(h, arena, capacity, false);
    base = arena.take<T>(capacity * h.ld[0]);
    shifted = arena.take<T>(capacity * h.ld[0]);
    u1 = arena.take<T>(capacity + kPhiloxLanes);
    u2 = arena.take<T>(capacity + kPhiloxLanes);
    offset = arena.take<double>(capacity);
    y = arena.take<T>(capacity), rate = arena.take<T>(capacity);
    rho = arena.take<T>(capacity), kappa = arena.take<T>(capacity);
  }

  // The context's share of the first layer; at(r, j) gives context feature j < given of row r, the others are zero.
  template <class At>
  void set_context(int64_t rows, int64_t given, At at) {
    tile.rows = rows;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < head->ld_in; ++j) tile.in[r * head->ld_in + j] = j < given ? at(r, j) : T(0);
      for (int64_t j = 0; j < head->ld_features; ++j) tile.tin[r * head->ld_features + j] = T(0);
    }
    gemm<T>(rows, head->P[0], head->C, tile.in, head->ld_in, head->forward[0], nullptr, base, head->ld[0],
            tile.scratch);
  }

  // The first layer's share that does not depend on x, in a stage whose own feature is *feature (null for none).
  const T* stage_base(const double* feature) {
    if (feature == nullptr) return base;
    const Vec<T> v(static_cast<T>(*feature));
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t row = i * head->ld[0];
      for (int64_t j = 0; j < head->P[0]; j += Vec<T>::W)
        (Vec<T>::load(base + row + j) + v * Vec<T>::load(head->stage_weight + j)).store(shifted + row + j);
    }
    return shifted;
  }

  // The row constants of a preconditioned head.
  template <class S>
  void set_offsets(const void* context, int64_t begin, double squash) {
    u0 = squash;
    for (int64_t r = 0; r < tile.rows; ++r) {
      offset[r] = offset_of<S>(context, begin + r, head->C);
      rate[r] = static_cast<T>(__builtin_exp(offset[r]));
    }
  }
  void set_level(double log_sigma) {
    for (int64_t r = 0; r < tile.rows; ++r) {
      const double own = __builtin_exp(offset[r] + log_sigma);
      rho[r] = static_cast<T>(1 / own);
      kappa[r] = static_cast<T>(1 / __builtin_hypot(1, own));
    }
  }

  // kappa (rho r - v) into tile.s.
  void own_score(const T* first_layer) {
    using V = Vec<T>;
    V derivative;
    for (int64_t r = 0; r < tile.rows; r += V::W)
      squash_(V::load(kappa + r) * V::load(y + r), V(u0), derivative).store(tile.x + r);
    score(first_layer);
    for (int64_t r = 0; r < tile.rows; r += V::W) {
      const V k = V::load(kappa + r);
      (k * (V::load(rho + r) * V::load(tile.s + r) - k * V::load(y + r))).store(tile.s + r);
    }
  }

  // s(c, x) into tile.s.
  void score(const T* first_layer) {
    const int64_t R = tile.rows, ld = head->ld[0];
    if (head->F == 1) {
      activation_pass<T, kValue>(*head, tile, 0, first_layer, head->x_weight);
    } else {
      for (int64_t r = 0; r < R; ++r) load_features<T>(*head, tile.x[r], tile.tin + r * head->ld_features, nullptr);
      gemm<T>(R, head->P[0], head->F, tile.tin, head->ld_features, head->features_forward, first_layer, tile.zu[0], ld,
              tile.scratch);
      activation_pass<T, kValue>(*head, tile, 0, tile.zu[0], nullptr);
    }
    forward_rest<T, kValue>(*head, tile);
  }

  // x <- x + drift s + diffusion z, of a preconditioned head with drift / tau^2 and diffusion / tau; with u1 =
  // max(float32(w0), 1/2) 2^-32, u2 = (w1 >> 8) 2^-24, z = sqrt(-2 ln u1) cos(2 pi u2).
  template <bool kOwn>
  void move(const Noise& noise, int64_t step, T drift, T diffusion) {
    using V = Vec<T>;
    for (int64_t r = 0; r < tile.rows; r += kPhiloxLanes) {
      uint32_t w0[kPhiloxLanes], w1[kPhiloxLanes];
      const int count = tile.rows - r < kPhiloxLanes ? static_cast<int>(tile.rows - r) : kPhiloxLanes;
      noise_words(noise.seed, noise.samples + r, noise.dimensions + r, static_cast<uint32_t>(step), count, w0, w1);
      for (int i = 0; i < kPhiloxLanes; ++i) {
        const float u = static_cast<float>(w0[i]);
        u1[r + i] = static_cast<T>((u < 0.5f ? 0.5f : u) * 0x1p-32f);
        u2[r + i] = static_cast<T>(static_cast<float>(w1[i] >> 8) * 0x1p-24f);
      }
    }
    for (int64_t r = 0; r < tile.rows; r += V::W) {
      const V z = sqrt_(V(-2) * log_(V::load(u1 + r))) * cos_turn(V::load(u2 + r));
      if constexpr (kOwn) {
        const V w = V::load(rate + r);
        (V::load(y + r) + w * (V(drift) * (w * V::load(tile.s + r)) + V(diffusion) * z)).store(y + r);
      } else {
        (V::load(tile.x + r) + (V(drift) * V::load(tile.s + r) + V(diffusion) * z)).store(tile.x + r);
      }
    }
  }

  // The draw from N(0, 1) that a chain starts from: step 0.
  void start(const Noise& noise) {
    for (int64_t r = 0; r < tile.rows; ++r) tile.x[r] = tile.s[r] = T(0);
    move<false>(noise, 0, T(0), T(1));
  }

  template <bool kOwn>
  void stage(const Noise& noise, double step_size, double score_scale, const double* feature, int64_t steps,
             int64_t first_step) {
    const T* first_layer = stage_base(feature);
    if constexpr (kOwn) set_level(*feature), score_scale = 1;
    const T drift = static_cast<T>(0.5 * step_size * score_scale), diffusion = static_cast<T>(std::sqrt(step_size));
    for (int64_t t = 0; t < steps && (t % kUnasked != 0 || !stopped()); ++t) {
      if constexpr (kOwn) {
        own_score(first_layer);
      } else {
        score(first_layer);
      }
      move<kOwn>(noise, first_step + t, drift, diffusion);
    }
  }
};

template <class S, class T>
struct LangevinRows {
  Chain<T> chain;

  static double scores(const LangevinArgs& a) { return static_cast<double>(a.stages) * static_cast<double>(a.steps); }
  static int64_t capacity(const Packed<T>& head, int64_t share) { return shared_rows(head, share); }
  void layout(const Packed<T>& head, Arena& arena, int64_t rows) { chain.layout(head, arena, rows); }

  void run(const LangevinArgs& a, const Packed<T>& head, int64_t begin, int64_t rows) {
    load_contexts<S>(chain, a.context, begin, rows, head.C - (a.stage_features != nullptr && a.squash == 0));
    if (a.squash > 0) {
      chain.template set_offsets<S>(a.context, begin, a.squash);
      stages<true>(a, begin, chain.y);
    } else {
      stages<false>(a, begin, chain.tile.x);
    }
  }

  template <bool kOwn>
  void stages(const LangevinArgs& a, int64_t begin, T* x) {
    const int64_t rows = chain.tile.rows;
    for (int64_t r = 0; r < rows; ++r) x[r] = from_storage(static_cast<const S*>(a.x)[begin + r]);
    const Noise noise{a.seed, a.samples + begin, a.dimensions + begin};
    for (int64_t i = 0; i < a.stages; ++i)
      chain.template stage<kOwn>(noise, a.step_sizes[i], a.score_scales[i],
                                 a.stage_features == nullptr ? nullptr : a.stage_features + i, a.steps,
                                 a.first_step + i * a.steps);
    for (int64_t r = 0; r < rows; ++r) static_cast<S*>(a.out)[begin + r] = to_storage<S>(x[r]);
  }
};

void langevin_kernel(const LangevinArgs& a) {
  by_storage(a.head.storage, [&]<class S, class T>() { run_rows<S, T, LangevinRows<S, T>>(a); });
}

// Langevin dynamics of the variable that is next in a draw: one model serves all stages, or stage m has model m.
template <class S, class T>
struct LangevinDrawer {
  static double scores(const DrawArgs& a) { return static_cast<double>(a.stages) * static_cast<double>(a.steps); }

  const DrawArgs* args;
  Chain<T> chain[kMaxModels];

  void layout(const DrawArgs& a, const Packed<T>* heads, Arena& arena) {
    args = &a;
    for (int64_t m = 0; m < a.models; ++m) chain[m].layout(heads[m], arena, kPanel<T>);
  }
  template <class At>
  void set_context(int64_t m, int64_t rows, At at) {
    chain[m].set_context(rows, args->context, at);
  }
  const double* feature(int64_t i) const {
    return args->stage_features == nullptr ? nullptr : args->stage_features + i;
  }

  // Model m's part, its context set; after the last the values are in x() and, for a denoised result, s().
  void draw(int64_t m, const Noise& noise) {
    const DrawArgs& a = *args;
    if (m == 0) {
      chain[m].start(noise);
    } else {
      memcpy(chain[m].tile.x, chain[m - 1].tile.x, kPanel<T> * sizeof(T));
    }
    const int64_t from = a.models == 1 ? 0 : m, to = a.models == 1 ? a.stages : m + 1;
    for (int64_t i = from; i < to; ++i)
      chain[m].template stage<false>(noise, a.step_sizes[i], a.score_scales[i], feature(i), a.steps, 1 + i * a.steps);
    if (m == a.models - 1 && a.clean != nullptr) chain[m].score(chain[m].stage_base(feature(a.stages - 1)));
  }
  const T* x() const { return chain[args->models - 1].tile.x; }
  const T* s() const { return chain[args->models - 1].tile.s; }
};

void langevin_draw_kernel(const DrawArgs& a) {
  by_storage(a.storage, [&]<class S, class T>() { DrawRows<S, T, LangevinDrawer<S, T>>{a}.run(); });
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

Tensor langevin(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
                std::vector<double> step_sizes, std::vector<double> score_scales, std::vector<double> stage_features,
                int64_t steps, int64_t seed, Tensor samples, Tensor dimensions, int64_t first_step, double squash,
                bool reduced) {
  LangevinArgs a = langevin_args(context, x, weights, biases, frequencies, activation, step_sizes, score_scales,
                                 stage_features, steps, seed, samples, dimensions, first_step, squash, reduced);
  Tensor out = new_like(x);
  a.out = out.mutable_data_ptr();
  FASTCSM_DISPATCH(langevin_kernel, uses_pairs(a.head), a);
  return out;
}

std::tuple<Tensor, Tensor> langevin_draw(Tensor x, Tensors weights, Tensors biases, Tensor frequencies,
                                         int64_t activation, Tensors made_weights, Tensors made_biases, Tensors degrees,
                                         Tensor order, int64_t made_activation, bool residual,
                                         std::vector<double> step_sizes, std::vector<double> score_scales,
                                         std::vector<double> stage_features, int64_t steps, int64_t seed,
                                         Tensor samples, int64_t first, int64_t last, double denoise, bool reduced) {
  Draw draw(x, weights, biases, frequencies, activation, made_weights, made_biases, degrees, order, made_activation,
            residual, !stage_features.empty(), seed, samples, first, last, denoise != 0, reduced);
  draw.set_stages(step_sizes, score_scales, stage_features, steps, denoise);
  const DrawArgs& a = draw.args;
  if (a.rows > 0) FASTCSM_DISPATCH(langevin_draw_kernel, uses_pairs(a), a);
  return draw.results();
}

}  // namespace fastcsm
#endif
