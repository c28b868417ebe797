// x <- x + (e_i / 2) k_i s(c, x) + sqrt(e_i) z, every stage and step of a block of rows before the next block is
// touched. The context's share of the first layer is computed once; a stage's own feature (log sigma_i) only shifts it.
// Noise comes from Philox, keyed by the seed and counted by (sample, dimension, step), so a block's place and thread do
// not matter.
#ifndef FASTCSM_FILE
#define FASTCSM_FILE "cpu/langevin.cpp"
#include <cmath>
#include <cstring>
#include <stdexcept>

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

template <class S, class T>
struct LangevinRows {
  const LangevinArgs& a;
  Packed<T> head;
  int64_t capacity, scratch_bytes;
  char* scratch;

  struct Block {
    Tile<T> tile;
    T *base, *shifted;  // (R, H_1) the context's share of a_1; with the stage's feature added
    T *u1, *u2;         // (R) uniforms
    void layout(const Packed<T>& head, Arena& arena, int64_t capacity) {
      tile.layout(head, arena, capacity, false);
      base = arena.take<T>(capacity * head.ld[0]);
      shifted = arena.take<T>(capacity * head.ld[0]);
      u1 = arena.take<T>(capacity + kPhiloxLanes);
      u2 = arena.take<T>(capacity + kPhiloxLanes);
    }
  };

  static void task(void* self, int64_t task, int64_t worker) {
    const auto& l = *static_cast<const LangevinRows*>(self);
    Arena arena(l.scratch + worker * l.scratch_bytes);
    Block b;
    b.layout(l.head, arena, l.capacity);
    l.block(b, task * l.capacity);
  }

  void block(Block& b, int64_t begin) const {
    Tile<T>& tile = b.tile;
    const int64_t R = tile.rows = a.rows - begin < capacity ? a.rows - begin : capacity;
    const int64_t C = head.C, ld = head.ld[0], P = head.P[0];
    const int64_t given = a.stage_features == nullptr ? C : C - 1;  // columns of context in memory
    for (int64_t r = 0; r < R; ++r) {
      const S* c = static_cast<const S*>(a.context) + (begin + r) * given;
      for (int64_t j = 0; j < head.ld_in; ++j) tile.in[r * head.ld_in + j] = j < given ? from_storage(c[j]) : T(0);
      for (int64_t j = 0; j < head.ld_features; ++j) tile.tin[r * head.ld_features + j] = T(0);
      tile.x[r] = from_storage(static_cast<const S*>(a.x)[begin + r]);
    }
    gemm<T>(R, P, C, tile.in, head.ld_in, head.forward[0], nullptr, b.base, ld, tile.scratch);
    for (int64_t i = 0; i < a.stages; ++i) {
      const T* base = b.base;
      if (a.stage_features != nullptr) {
        const Vec<T> v(static_cast<T>(a.stage_features[i]));
        for (int64_t r = 0; r < R; ++r)
          for (int64_t j = 0; j < P; j += Vec<T>::W)
            (Vec<T>::load(b.base + r * ld + j) + v * Vec<T>::load(head.stage_weight + j)).store(b.shifted + r * ld + j);
        base = b.shifted;
      }
      const T drift = static_cast<T>(0.5 * a.step_sizes[i] * a.score_scales[i]);
      const T diffusion = static_cast<T>(std::sqrt(a.step_sizes[i]));
      for (int64_t t = 0; t < a.steps; ++t) {
        score(tile, base);
        step(b, begin, static_cast<uint32_t>(a.first_step + i * a.steps + t), drift, diffusion);
      }
    }
    for (int64_t r = 0; r < R; ++r) static_cast<S*>(a.out)[begin + r] = to_storage<S>(tile.x[r]);
  }

  // s(c, x) into tile.s, from the context's share of the first layer.
  void score(Tile<T>& tile, const T* base) const {
    const int64_t R = tile.rows, ld = head.ld[0];
    if (head.F == 1) {
      activation_pass<T, kValue>(head, tile, 0, base, head.x_weight);
    } else {
      for (int64_t r = 0; r < R; ++r) load_features<T>(head, tile.x[r], tile.tin + r * head.ld_features, nullptr);
      gemm<T>(R, head.P[0], head.F, tile.tin, head.ld_features, head.features_forward, base, tile.zu[0], ld,
              tile.scratch);
      activation_pass<T, kValue>(head, tile, 0, tile.zu[0], nullptr);
    }
    forward_rest<T, kValue>(head, tile);
  }

  // u1 = max(float32(w0), 1/2) 2^-32, u2 = (w1 >> 8) 2^-24, z = sqrt(-2 ln u1) cos(2 pi u2).
  void step(Block& b, int64_t begin, uint32_t step, T drift, T diffusion) const {
    using V = Vec<T>;
    Tile<T>& tile = b.tile;
    for (int64_t r = 0; r < tile.rows; r += kPhiloxLanes) {
      uint32_t w0[kPhiloxLanes], w1[kPhiloxLanes];
      const int count = tile.rows - r < kPhiloxLanes ? static_cast<int>(tile.rows - r) : kPhiloxLanes;
      noise_words(a.seed, a.samples + begin + r, a.dimensions + begin + r, step, count, w0, w1);
      for (int i = 0; i < kPhiloxLanes; ++i) {
        const float u = static_cast<float>(w0[i]);
        b.u1[r + i] = static_cast<T>((u < 0.5f ? 0.5f : u) * 0x1p-32f);
        b.u2[r + i] = static_cast<T>(static_cast<float>(w1[i] >> 8) * 0x1p-24f);
      }
    }
    for (int64_t r = 0; r < tile.rows; r += V::W) {
      const V z = sqrt_(V(-2) * log_(V::load(b.u1 + r))) * cos_turn(V::load(b.u2 + r));
      const V x = V::load(tile.x + r) + (V(drift) * V::load(tile.s + r) + V(diffusion) * z);
      x.store(tile.x + r);
    }
  }

  void run() {
    Arena none(nullptr);
    head.layout(a.head, none, false);
    Scratch weights(none.bytes());
    Arena weight_arena(weights.p);
    head.layout(a.head, weight_arena, false);
    head.template fill<S>();
    // Few rows are spread over all threads; how rows are split changes no row's result.
    const int64_t share = (a.rows + workers() - 1) / workers();
    const int64_t fits = tile_rows(head, kBlockBytes);
    capacity = share < fits ? share : fits;
    Arena measure(nullptr);
    Block().layout(head, measure, capacity);
    scratch_bytes = measure.bytes();
    Scratch memory(scratch_bytes * workers());
    scratch = static_cast<char*>(memory.p);
    run_tasks((a.rows + capacity - 1) / capacity, task, this);
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

}  // namespace fastcsm
#endif
