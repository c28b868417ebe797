// Rows to gradients: tiles are gathered into tasks, each task sums its parameter gradients alone, and the sums are
// added in task order. The tasks depend on the sizes only, never on the number of threads. No include guard: included
// once per instruction set.

constexpr int64_t kTileBytes = (FASTCSM_VECTOR_BYTES == 64 ? 480 : 240) << 10;  // about half the second-level cache
constexpr int64_t kPartialBytes = 12 << 20;
constexpr int64_t kTasks = 64;
constexpr int64_t kReduced = 32;  // output rows that a task adds up

// Fills tile.gd = dL/ds' for rows from begin on; whether any is not 0. A tile of zeros needs no tangents: half the
// work.
template <class T>
using TangentsFn = bool (*)(const void* job, Tile<T>& tile, int64_t begin);

// Fills tile.gs = dL/ds, after tile.s, tile.ds are known; returns the tile's part of the loss.
template <class T>
using UpstreamFn = double (*)(const void* job, Tile<T>& tile, int64_t begin);

template <class S, class T>
struct GradientRows {
  const S *context, *x;
  int64_t N;
  HeadGradients out;
  TangentsFn<T> tangents;
  UpstreamFn<T> upstream;
  const void* job;

  Packed<T> head;
  int64_t tile_capacity, tasks, rows_per_task, partial_bytes;
  char* partials;
  double losses[kTasks];

  static void task(void* self, int64_t task, Arena tile_arena) {
    auto& g = *static_cast<GradientRows*>(self);
    Arena partial_arena(g.partials + task * g.partial_bytes);
    Tile<T> tile;
    tile.layout(g.head, tile_arena, g.tile_capacity, g.wanted());
    Partial<T> sum;
    if (g.out.params) {
      sum.layout(g.head, partial_arena);
      sum.clear(g.head);
      for (int64_t k = 0; k < g.head.K; ++k)
        if (g.direct(k)) sum.weight[k] = static_cast<T*>(g.out.weight[k]), sum.ld[k] = g.head.inputs(k);
    }
    double loss = 0;
    const int64_t end = g.N < (task + 1) * g.rows_per_task ? g.N : (task + 1) * g.rows_per_task;
    for (int64_t begin = task * g.rows_per_task; begin < end && !stopped(); begin += g.tile_capacity) {
      tile.rows = end - begin < g.tile_capacity ? end - begin : g.tile_capacity;
      load_rows(g.head, tile, g.context, g.x, begin);
      loss += g.tangents(g.job, tile, begin) ? g.template there_and_back<true>(tile, sum, begin)
                                             : g.template there_and_back<false>(tile, sum, begin);
    }
    g.losses[task] = loss;
  }

  bool wanted() const { return out.params || out.context != nullptr || out.x != nullptr; }

  // The tile's part of the loss.
  template <bool kSlope>
  double there_and_back(Tile<T>& tile, Partial<T>& sum, int64_t begin) const {
    if (!wanted()) {
      forward_tile<T, kTangent>(head, tile);
      return upstream(job, tile, begin);
    }
    forward_tile<T, kSlope ? kForBackward : kValueForBackward>(head, tile);
    const double loss = upstream(job, tile, begin);
    backward_tile<S, T, kSlope>(head, tile, sum, out.params, static_cast<S*>(out.context), static_cast<S*>(out.x),
                                begin);
    return loss;
  }

  // Whether the sum of layer k is its gradient: of one task, without padding.
  bool direct(int64_t k) const {
    return tasks == 1 && sizeof(S) == sizeof(T) && k > 0 && k < head.K && head.inputs(k) == head.P[k - 1];
  }

  // Blocks of the output rows of all weights, then one task for the biases.
  int64_t blocks(int64_t k) const { return direct(k) ? 0 : k < head.K ? (head.H[k] + kReduced - 1) / kReduced : 1; }
  static void reduce(void* self, int64_t task, Arena) {
    const auto& g = *static_cast<const GradientRows*>(self);
    const int64_t K = g.head.K;
    for (int64_t k = 0; k <= K; task -= g.blocks(k++)) {
      if (task >= g.blocks(k)) continue;
      const int64_t rows = k < K ? g.head.H[k] : 1, in = k < K ? g.head.inputs(k) : g.head.H[K - 1];
      for (int64_t row = task * kReduced; row < rows && row < (task + 1) * kReduced; ++row) g.add(row, in, k, false);
      return;
    }
    for (int64_t k = 0; k <= K; ++k) g.add(0, k < K ? g.head.H[k] : 1, k, true);
  }
  void add(int64_t row, int64_t n, int64_t k, bool bias) const {
    Arena arena(partials);
    Partial<T> sum;
    sum.layout(head, arena);
    const T* first = bias ? sum.bias[k] : sum.weight[k] + row * sum.ld[k];
    S* to = static_cast<S*>(bias ? out.bias[k] : out.weight[k]) + row * n;
    if (tasks == 1) {
      for (int64_t j = 0; j < n; ++j) to[j] = to_storage<S>(first[j]);
      return;
    }
    for (int64_t j = 0; j < n; j += 64) {
      T total[64] = {};
      const int64_t count = n - j < 64 ? n - j : 64;
      for (int64_t t = 0; t < tasks; ++t) {
        const T* part = reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + t * partial_bytes) + j;
        for (int64_t i = 0; i < count; ++i) total[i] += part[i];
      }
      for (int64_t i = 0; i < count; ++i) to[j + i] = to_storage<S>(total[i]);
    }
  }

  double run(const HeadArgs& args) {
    const int64_t inputs = out.x != nullptr         ? args.context + args.features()
                           : out.context != nullptr ? args.context
                                                    : 0;
    const PackedMemory<S, T> weights(head, args, wanted(), inputs);

    const int64_t needed = (N + kMicroRows - 1) / kMicroRows * kMicroRows, fits = tile_rows(head, kTileBytes);
    tile_capacity = needed > 0 && needed < fits ? needed : fits;
    Arena tile_measure(nullptr), partial_measure(nullptr);
    Tile<T>().layout(head, tile_measure, tile_capacity, wanted());
    Partial<T>().layout(head, partial_measure);
    partial_bytes = partial_measure.bytes();
    const int64_t all_tiles = (N + tile_capacity - 1) / tile_capacity;
    const int64_t afford = kPartialBytes / partial_bytes < 8 ? 8 : kPartialBytes / partial_bytes;
    const int64_t most = afford < kTasks ? afford : kTasks;
    const int64_t tiles_per_task = (all_tiles + most - 1) / most;
    tasks = tiles_per_task == 0 ? 0 : (all_tiles + tiles_per_task - 1) / tiles_per_task;
    rows_per_task = tiles_per_task * tile_capacity;

    const Scratch partial_memory(out.params ? tasks * partial_bytes : 0);
    partials = static_cast<char*>(partial_memory.p);
    const double forward = 2 * head.products(), numbers = static_cast<double>(partial_bytes) / sizeof(T);
    run_tasks(tasks, tile_measure.bytes(), team(static_cast<double>(N) * (wanted() ? 3 : 1) * forward), task, this);
    if (out.params) {
      int64_t reductions = 1;
      for (int64_t k = 0; k <= head.K; ++k) reductions += blocks(k);
      run_tasks(reductions, 0, team(kMoved * static_cast<double>(tasks) * numbers), reduce, this);
    }
    double loss = 0;
    for (int64_t t = 0; t < tasks; ++t) loss += losses[t];
    return loss;
  }
};
