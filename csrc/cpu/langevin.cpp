// x <- x + (e_i / 2) k_i s(c, x) + sqrt(e_i) z, every stage and step of a block of rows before the next block is
// touched. The context's share of the first layer is computed once; a stage's own feature (log sigma_i) only shifts it.
// Noise comes from Philox, keyed by the seed and counted by (sample, dimension, step), so a block's place and thread do
// not matter.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/langevin.cpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

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

constexpr int64_t kBlockBytes = 200 << 10;

// What makes the noise of a block's rows: z of step k for row r is normal(seed, samples[r], dimensions[r], k).
struct Noise {
  uint64_t seed;
  const int64_t *samples, *dimensions;
};

// A block of rows with their contexts, on its way through the stages.
template <class T>
struct Chain {
  const Packed<T>* head;
  Tile<T> tile;
  T *base, *shifted;  // (R, H_1) the context's share of a_1; with the stage's feature added
  T *u1, *u2;         // (R) uniforms

  void layout(const Packed<T>& h, Arena& arena, int64_t capacity) {
    head = &h;
    tile.layout(h, arena, capacity, false);
    base = arena.take<T>(capacity * h.ld[0]);
    shifted = arena.take<T>(capacity * h.ld[0]);
    u1 = arena.take<T>(capacity + kPhiloxLanes);
    u2 = arena.take<T>(capacity + kPhiloxLanes);
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

  // x <- x + drift s + diffusion z, with u1 = max(float32(w0), 1/2) 2^-32, u2 = (w1 >> 8) 2^-24,
  // z = sqrt(-2 ln u1) cos(2 pi u2).
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
      (V::load(tile.x + r) + (V(drift) * V::load(tile.s + r) + V(diffusion) * z)).store(tile.x + r);
    }
  }

  // The draw from N(0, 1) that a chain starts from: step 0.
  void start(const Noise& noise) {
    for (int64_t r = 0; r < tile.rows; ++r) tile.x[r] = tile.s[r] = T(0);
    move(noise, 0, T(0), T(1));
  }

  void stage(const Noise& noise, double step_size, double score_scale, const double* feature, int64_t steps,
             int64_t first_step) {
    const T* first_layer = stage_base(feature);
    const T drift = static_cast<T>(0.5 * step_size * score_scale), diffusion = static_cast<T>(std::sqrt(step_size));
    for (int64_t t = 0; t < steps; ++t) {
      score(first_layer);
      move(noise, first_step + t, drift, diffusion);
    }
  }
};

template <class S, class T>
struct LangevinRows {
  const LangevinArgs& a;
  Packed<T> head;
  int64_t capacity, scratch_bytes;
  char* scratch;

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& l = *static_cast<const LangevinRows*>(self);
    const LangevinArgs& a = l.a;
    Arena arena(l.scratch + worker * l.scratch_bytes);
    Chain<T> chain;
    chain.layout(l.head, arena, l.capacity);
    const int64_t begin = task * l.capacity, rows = a.rows - begin < l.capacity ? a.rows - begin : l.capacity;
    const int64_t given = a.stage_features == nullptr ? l.head.C : l.head.C - 1;  // columns of context in memory
    const S* context = static_cast<const S*>(a.context) + begin * given;
    chain.set_context(rows, given, [&](int64_t r, int64_t j) { return from_storage(context[r * given + j]); });
    for (int64_t r = 0; r < rows; ++r) chain.tile.x[r] = from_storage(static_cast<const S*>(a.x)[begin + r]);
    const Noise noise{a.seed, a.samples + begin, a.dimensions + begin};
    for (int64_t i = 0; i < a.stages; ++i)
      chain.stage(noise, a.step_sizes[i], a.score_scales[i],
                  a.stage_features == nullptr ? nullptr : a.stage_features + i, a.steps, a.first_step + i * a.steps);
    for (int64_t r = 0; r < rows; ++r) static_cast<S*>(a.out)[begin + r] = to_storage<S>(chain.tile.x[r]);
  }

  void run() {
    const PackedMemory<S, T> weights(head, a.head, false);
    // Few rows are spread over all threads; how rows are split changes no row's result.
    const int64_t share = (a.rows + workers() - 1) / workers();
    const int64_t fits = tile_rows(head, kBlockBytes);
    capacity = share < fits ? share : fits;
    Arena measure(nullptr);
    Chain<T>().layout(head, measure, capacity);
    scratch_bytes = measure.bytes();
    Scratch memory(scratch_bytes * workers());
    scratch = static_cast<char*>(memory.p);
    run_tasks((a.rows + capacity - 1) / capacity, task, this);
  }
};

// The whole autoregressive draw. A task owns up to kPanel<T> samples; unit values lie as (units, samples), so that the
// product for the units that come due is a micro-kernel on the weights as they are: units are sorted by degree, and
// those of one degree read the same prefix of the layer below.
template <class S, class T>
struct DrawRows {
  const DrawArgs& a;
  Packed<T>* heads;  // one a model
  int64_t scratch_bytes, rows_per_task;
  char* scratch;
  const T* weight[kMaxModels][kMaxMadeLayers];  // of each layer, inputs sorted by degree
  const T* bias[kMaxModels][kMaxMadeLayers];

  static constexpr int64_t P = kPanel<T>;

  // Unit values of one model's network for the samples of a task.
  struct Units {
    T* value[kMaxMadeLayers];  // (H, P) what the next layer reads
    T* sum[kMaxMadeLayers];    // (H, P) residual stream, where there is one
  };
  struct Workspace {
    Chain<T> chain[kMaxModels];
    Units units[kMaxModels];
    T *x, *context, *product;  // (D, P) in drawing order, (C, P), (kMicroRows, P)
    int64_t* dimension;
    void layout(const DrawArgs& a, const Packed<T>* heads, Arena& arena) {
      x = arena.take<T>(a.variables * P);
      context = arena.take<T>(a.context * P);
      product = arena.take<T>(kMicroRows * P);
      dimension = arena.take<int64_t>(P);
      for (int64_t m = 0; m < a.models; ++m) {
        for (int64_t l = 0; l < a.layers; ++l) {
          units[m].value[l] = arena.take<T>(a.width[l] * P);
          units[m].sum[l] = a.residual ? arena.take<T>(a.width[l] * P) : nullptr;
        }
      }
      for (int64_t m = 0; m < a.models; ++m) chain[m].layout(heads[m], arena, P);
    }
  };

  // out (count, P) = W[first : first + count, : depth] in + b.
  template <class Out>
  void units_of(int64_t m, int64_t l, int64_t first, int64_t count, int64_t depth, const T* in, T* product,
                Out out) const {
    const int64_t inputs = l == 0 ? a.variables : a.width[l - 1];
    for (int64_t u = 0; u < count; u += kMicroRows) {
      const int64_t rows = count - u < kMicroRows ? count - u : kMicroRows;
      micro_rest<T, kMicroVectors, false, false>(rows, depth, weight[m][l] + (first + u) * inputs, inputs, in, P,
                                                 nullptr, product, P);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < P; j += Vec<T>::W)
          out(first + u + i, j, Vec<T>::load(product + i * P + j) + Vec<T>(bias[m][l][first + u + i]));
    }
  }

  template <int A>
  void feed_as(Workspace& w, int64_t m, int64_t k) const {
    const Units& units = w.units[m];
    const auto activated = [](Vec<T> v) {
      Vec<T> f, d, e;
      activate<A>(v, f, d, e);
      return f;
    };
    for (int64_t l = 0; l < a.layers; ++l) {
      const int64_t first = a.due[l][k], count = a.due[l][k + 1] - first;
      const int64_t depth = l == 0 ? k + 1 : a.due[l - 1][k + 1];
      const T* in = l == 0 ? w.x : units.value[l - 1];
      const bool inner = l % 2 == 1;  // first layer of a residual block
      units_of(m, l, first, count, depth, in, w.product, [&](int64_t u, int64_t j, Vec<T> v) {
        T* value = units.value[l] + u * P + j;
        if (a.residual && !inner) {
          if (l > 0) v += Vec<T>::load(units.sum[l - 2] + u * P + j);
          v.store(units.sum[l] + u * P + j);
        }
        activated(v).store(value);
      });
    }
  }
  // Finishes the units of degree k + 1, once the value drawn k-th is in w.x.
  void feed(Workspace& w, int64_t m, int64_t k) const {
    switch (a.activation) {
      case kSoftplus:
        return feed_as<kSoftplus>(w, m, k);
      case kTanh:
        return feed_as<kTanh>(w, m, k);
      case kSilu:
        return feed_as<kSilu>(w, m, k);
      case kGelu:
        return feed_as<kGelu>(w, m, k);
      case kElu:
        return feed_as<kElu>(w, m, k);
      case kRelu:
        return feed_as<kRelu>(w, m, k);
      default:
        return feed_as<kSigmoid>(w, m, k);
    }
  }

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& d = *static_cast<const DrawRows*>(self);
    const DrawArgs& a = d.a;
    Arena arena(d.scratch + worker * d.scratch_bytes);
    Workspace w;
    w.layout(a, d.heads, arena);
    const int64_t begin = task * d.rows_per_task, rows = std::min(d.rows_per_task, a.rows - begin);
    S* x = static_cast<S*>(a.x) + begin * a.variables;
    S* clean = a.clean == nullptr ? nullptr : static_cast<S*>(a.clean) + begin * a.variables;
    memset(w.x, 0, a.variables * P * sizeof(T));
    for (int64_t k = 0; k < a.last; ++k) {
      const int64_t variable = a.order[k];
      if (k < a.first) {
        for (int64_t r = 0; r < rows; ++r) w.x[k * P + r] = from_storage(x[r * a.variables + variable]);
      } else {
        for (int64_t r = 0; r < rows; ++r) w.dimension[r] = variable;
        d.draw(w, k, rows, {a.seed, a.samples + begin, w.dimension});
        const Tile<T>& tile = w.chain[a.models - 1].tile;
        for (int64_t r = 0; r < rows; ++r) {
          w.x[k * P + r] = tile.x[r];
          x[r * a.variables + variable] = to_storage<S>(tile.x[r]);
          if (clean != nullptr)
            clean[r * a.variables + variable] = to_storage<S>(tile.x[r] + static_cast<T>(a.denoise) * tile.s[r]);
        }
      }
      for (int64_t m = 0; m < a.models; ++m) d.feed(w, m, k);
    }
  }

  // Draws the variable that comes k-th; with a.clean also leaves its score in the last model's tile.
  void draw(Workspace& w, int64_t k, int64_t rows, const Noise& noise) const {
    const int64_t C = a.context, last = a.layers - 1;
    const double* features = a.stage_features;
    for (int64_t m = 0; m < a.models; ++m) {
      Chain<T>& chain = w.chain[m];
      units_of(m, a.layers, a.order[k] * C, C, a.due[last][k], w.units[m].value[last], w.product,
               [&](int64_t u, int64_t j, Vec<T> v) { v.store(w.context + (u - a.order[k] * C) * P + j); });
      chain.set_context(rows, C, [&](int64_t r, int64_t j) { return w.context[j * P + r]; });
      if (m == 0) {
        chain.start(noise);
      } else {
        memcpy(chain.tile.x, w.chain[m - 1].tile.x, P * sizeof(T));
      }
      // One model serves all stages, or stage m has model m.
      const int64_t from = a.models == 1 ? 0 : m, to = a.models == 1 ? a.stages : m + 1;
      for (int64_t i = from; i < to; ++i)
        chain.stage(noise, a.step_sizes[i], a.score_scales[i], features == nullptr ? nullptr : features + i, a.steps,
                    1 + i * a.steps);
    }
    if (a.clean != nullptr)
      w.chain[a.models - 1].score(
          w.chain[a.models - 1].stage_base(features == nullptr ? nullptr : features + a.stages - 1));
  }

  void run() {
    Arena none(nullptr);
    place(none);
    Scratch weights(none.bytes());
    Arena arena(weights.p);
    place(arena);
    Arena measure(nullptr);
    Workspace().layout(a, heads, measure);
    scratch_bytes = measure.bytes();
    Scratch memory(scratch_bytes * workers());
    scratch = static_cast<char*>(memory.p);
    rows_per_task = std::min(P, (a.rows + workers() - 1) / workers());
    run_tasks((a.rows + rows_per_task - 1) / rows_per_task, task, this);
  }

  // Packs the heads; uses a layer's parameters as they are where their type and order allow, else a copy.
  void place(Arena& arena) {
    heads = arena.take<Packed<T>>(a.models);
    const bool filling = heads != nullptr;
    Packed<T> head;
    for (int64_t m = 0; m < a.models; ++m) {
      head.layout(a.heads[m], arena, false);
      if (filling) {
        head.template fill<S>();
        memcpy(static_cast<void*>(heads + m), &head, sizeof head);
      }
      for (int64_t l = 0; l <= a.layers; ++l) {
        const int64_t inputs = l == 0 ? a.variables : a.width[l - 1],
                      outputs = l < a.layers ? a.width[l] : a.variables * a.context;
        const S* w = static_cast<const S*>(a.weight[m][l]);
        const S* b = static_cast<const S*>(a.bias[m][l]);
        if constexpr (sizeof(S) == sizeof(T)) {
          bias[m][l] = b;
          if (l > 0 || a.raster) {
            weight[m][l] = w;
            continue;
          }
        }
        T* copy = arena.take<T>(outputs * inputs);
        T* bias_copy = arena.take<T>(outputs);
        for (int64_t o = 0; filling && o < outputs; ++o) {
          bias_copy[o] = from_storage(b[o]);
          for (int64_t i = 0; i < inputs; ++i)
            copy[o * inputs + i] = from_storage(w[o * inputs + (l == 0 ? a.order[i] : i)]);
        }
        weight[m][l] = copy, bias[m][l] = bias_copy;
      }
    }
  }
};

template <class S, class T>
void langevin_typed(const LangevinArgs& a) {
  if (a.rows > 0) LangevinRows<S, T>{a, {}, 0, 0, nullptr}.run();
}

void langevin_kernel(const LangevinArgs& a) {
  if (a.head.storage == Storage::f32) return langevin_typed<float, float>(a);
  if (a.head.storage == Storage::bf16) return langevin_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  langevin_typed<double, double>(a);
#endif
}

template <class S, class T>
void langevin_draw_typed(const DrawArgs& a) {
  DrawRows<S, T> rows{a, nullptr, 0, 0, nullptr, {}, {}};
  rows.run();
}

void langevin_draw_kernel(const DrawArgs& a) {
  if (a.storage == Storage::f32) return langevin_draw_typed<float, float>(a);
  if (a.storage == Storage::bf16) return langevin_draw_typed<Bf16, float>(a);
#if !FASTCSM_REDUCED
  langevin_draw_typed<double, double>(a);
#endif
}

}  // namespace
}  // namespace fastcsm::FASTCSM_ISA

#else
namespace fastcsm {

Tensor langevin(Tensor context, Tensor x, Tensors weights, Tensors biases, Tensor frequencies, int64_t activation,
                std::vector<double> step_sizes, std::vector<double> score_scales, std::vector<double> stage_features,
                int64_t steps, int64_t seed, Tensor samples, Tensor dimensions, int64_t first_step, bool reduced) {
  LangevinArgs a{};
  a.head = head_args(context, x, weights, biases, frequencies, activation, reduced);
  a.rows = x.numel();
  a.stages = static_cast<int64_t>(step_sizes.size());
  a.steps = steps;
  a.first_step = first_step;
  a.seed = static_cast<uint64_t>(seed);
  if (score_scales.size() != step_sizes.size() ||
      (!stage_features.empty() && (stage_features.size() != step_sizes.size() || a.head.context < 1)))
    throw std::invalid_argument("fastcsm: score_scales and stage_features must have one value a stage");
  a.step_sizes = step_sizes.data();
  a.score_scales = score_scales.data();
  a.stage_features = stage_features.empty() ? nullptr : stage_features.data();
  const int64_t given = a.head.context - (stage_features.empty() ? 0 : 1);
  a.context = checked(context, "context", x.scalar_type(), a.rows * given);
  a.x = checked(x, "x", x.scalar_type(), a.rows);
  using torch::headeronly::ScalarType;
  a.samples = static_cast<const int64_t*>(checked(samples, "samples", ScalarType::Long, a.rows));
  a.dimensions = static_cast<const int64_t*>(checked(dimensions, "dimensions", ScalarType::Long, a.rows));
  Tensor out = torch::stable::empty_like(x);
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
  using torch::headeronly::ScalarType;
  DrawArgs a{};
  const auto expect = [](bool holds, const char* sentence) {
    if (!holds) throw std::invalid_argument(std::string("fastcsm: ") + sentence);
  };
  expect(x.dim() == 2, "x must have shape (samples, variables)");
  a.rows = x.size(0), a.variables = x.size(1);
  a.storage = storage_of(x);
  a.reduced = reduced;
  a.activation = static_cast<int>(made_activation);
  a.residual = residual;
  a.stages = static_cast<int64_t>(step_sizes.size());
  a.layers = static_cast<int64_t>(degrees.size());
  expect(a.layers >= 1 && a.layers < kMaxMadeLayers, "the network has too few or too many layers");
  a.models = static_cast<int64_t>(made_weights.size()) / (a.layers + 1);
  expect(a.models >= 1 && a.models <= kMaxModels && (a.models == 1 || a.models == a.stages),
         "made_weights must hold the layers of one network, or of one a stage");
  const size_t layers = a.models * (a.layers + 1);
  expect(made_weights.size() == layers && made_biases.size() == layers && weights.size() == biases.size() &&
             !weights.empty() && weights.size() % a.models == 0,
         "weights and biases do not belong to the same number of networks");
  expect(static_cast<int64_t>(score_scales.size()) == a.stages &&
             (stage_features.empty() || static_cast<int64_t>(stage_features.size()) == a.stages) &&
             (stage_features.empty() || a.models == 1),
         "score_scales and stage_features must have one value a stage");
  expect(0 <= first && first <= last && last <= a.variables,
         "first and last must satisfy 0 <= first <= last <= variables");
  a.order = static_cast<const int64_t*>(checked(order, "order", ScalarType::Long, a.variables));
  a.raster = true;
  for (int64_t k = 0; k < a.variables; ++k) {
    expect(a.order[k] >= 0 && a.order[k] < a.variables, "order must be a permutation of the variables");
    a.raster = a.raster && a.order[k] == k;
  }
  // due[l][k]: units of layer l with degree at most k.
  std::vector<std::vector<int64_t>> due(a.layers);
  for (int64_t l = 0; l < a.layers; ++l) {
    a.width[l] = degrees[l].numel();
    const auto* degree = static_cast<const int64_t*>(checked(degrees[l], "degrees", ScalarType::Long, a.width[l]));
    expect(std::is_sorted(degree, degree + a.width[l]), "hidden units must be sorted by degree");
    for (int64_t k = 0; k <= a.variables; ++k)
      due[l].push_back(std::upper_bound(degree, degree + a.width[l], k) - degree);
    expect(due[l][0] == 0, "degrees of hidden units must be at least 1");
    a.due[l] = due[l].data();
  }
  const size_t head_layers = weights.size() / a.models;
  const int64_t given = weights[0].dim() == 2 ? weights[0].size(1) - 1 - 2 * frequencies.numel() : 0;
  a.context = given - (stage_features.empty() ? 0 : 1);
  expect(a.context >= 0, "weights[0] has fewer columns than the context and the features of x");
  for (int64_t m = 0; m < a.models; ++m) {
    const auto slice = [&](const Tensors& all) {
      return Tensors(all.begin() + m * head_layers, all.begin() + (m + 1) * head_layers);
    };
    a.heads[m] = head_args(made_weights[0], x, slice(weights), slice(biases), frequencies, activation, reduced);
    expect(a.heads[m].context == given, "the heads must have the same number of context features");
    int64_t inputs = a.variables;
    for (int64_t l = 0; l <= a.layers; ++l) {
      const int64_t outputs = l < a.layers ? a.width[l] : a.variables * a.context;
      const size_t i = m * (a.layers + 1) + l;
      a.weight[m][l] = checked(made_weights[i], "made_weights", x.scalar_type(), outputs * inputs);
      a.bias[m][l] = checked(made_biases[i], "made_biases", x.scalar_type(), outputs);
      inputs = outputs;
    }
  }
  a.step_sizes = step_sizes.data();
  a.score_scales = score_scales.data();
  a.stage_features = stage_features.empty() ? nullptr : stage_features.data();
  a.steps = steps;
  a.seed = static_cast<uint64_t>(seed);
  a.samples = static_cast<const int64_t*>(checked(samples, "samples", ScalarType::Long, a.rows));
  a.first = first, a.last = last;
  a.denoise = a.stages > 0 ? denoise * score_scales.back() : 0;
  checked(x, "x", x.scalar_type(), a.rows * a.variables);
  Tensor out = torch::stable::clone(x);
  Tensor clean = torch::stable::clone(x);
  a.x = out.mutable_data_ptr();
  a.clean = denoise != 0 ? clean.mutable_data_ptr() : nullptr;
  if (a.rows > 0) FASTCSM_DISPATCH(langevin_draw_kernel, uses_pairs(a), a);
  return {out, denoise != 0 ? clean : torch::stable::clone(out)};
}

}  // namespace fastcsm
#endif
