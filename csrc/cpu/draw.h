// The whole autoregressive draw. A task owns up to kPanel<T> samples; unit values lie as (units, samples), so that the
// product for the units that come due is a micro-kernel on the weights as they are: units are sorted by degree, and
// those of one degree read the same prefix of the layer below. A Drawer draws one variable of all samples of a task,
// given their contexts. No include guard: included once per instruction set.

// What makes the noise of a block's rows: that of step k for row r is keyed by (seed, samples[r], dimensions[r], k).
struct Noise {
  uint64_t seed;
  const int64_t *samples, *dimensions;
};

template <class S, class T, class Drawer>
struct DrawRows {
  const DrawArgs& a;
  Packed<T>* heads = nullptr;  // one a model
  int64_t rows_per_task = 0;
  const T* weight[kMaxModels][kMaxMadeLayers] = {};  // of each layer, inputs sorted by degree
  const T* bias[kMaxModels][kMaxMadeLayers] = {};

  static constexpr int64_t P = kPanel<T>;

  // Unit values of one model's network for the samples of a task.
  struct Units {
    T* value[kMaxMadeLayers];  // (H, P) what the next layer reads
    T* sum[kMaxMadeLayers];    // (H, P) residual stream, where there is one
  };
  struct Workspace {
    Drawer drawer;
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
      drawer.layout(a, heads, arena);
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
  void feed(Workspace& w, int64_t m, int64_t k) const { FASTCSM_BY_ACTIVATION(a.activation, feed_as<A>(w, m, k)); }

  static void task(void* self, int64_t task, Arena arena) {
    const auto& d = *static_cast<const DrawRows*>(self);
    const DrawArgs& a = d.a;
    Workspace w;
    w.layout(a, d.heads, arena);
    const int64_t begin = task * d.rows_per_task, rows = std::min(d.rows_per_task, a.rows - begin);
    S* x = static_cast<S*>(a.x) + begin * a.variables;
    S* clean = a.clean == nullptr ? nullptr : static_cast<S*>(a.clean) + begin * a.variables;
    memset(w.x, 0, a.variables * P * sizeof(T));
    for (int64_t k = 0; k < a.last && !stopped(); ++k) {
      const int64_t variable = a.order[k];
      if (k < a.first) {
        for (int64_t r = 0; r < rows; ++r) w.x[k * P + r] = from_storage(x[r * a.variables + variable]);
      } else {
        for (int64_t r = 0; r < rows; ++r) w.dimension[r] = variable;
        for (int64_t m = 0; m < a.models; ++m) {
          d.find_context(w, m, k);
          w.drawer.set_context(m, rows, [&](int64_t r, int64_t j) { return w.context[j * P + r]; });
          w.drawer.draw(m, Noise{a.seed, a.samples + begin, w.dimension});
        }
        const T *drawn = w.drawer.x(), *score = w.drawer.s();
        for (int64_t r = 0; r < rows; ++r) {
          w.x[k * P + r] = drawn[r];
          x[r * a.variables + variable] = to_storage<S>(drawn[r]);
          if (clean != nullptr)
            clean[r * a.variables + variable] = to_storage<S>(drawn[r] + static_cast<T>(a.denoise) * score[r]);
        }
      }
      for (int64_t m = 0; m < a.models; ++m) d.feed(w, m, k);
    }
  }

  // Model m's context (C, P) of the variable that comes k-th.
  void find_context(Workspace& w, int64_t m, int64_t k) const {
    const int64_t C = a.context, last = a.layers - 1;
    units_of(m, a.layers, a.order[k] * C, C, a.due[last][k], w.units[m].value[last], w.product,
             [&](int64_t u, int64_t j, Vec<T> v) { v.store(w.context + (u - a.order[k] * C) * P + j); });
  }

  void run() {
    Arena none(nullptr);
    place(none);
    Scratch weights(none.bytes());
    Arena arena(weights.p);
    place(arena);
    Arena measure(nullptr);
    Workspace().layout(a, heads, measure);
    const int64_t threads = team(static_cast<double>(a.rows) * multiply_adds());
    rows_per_task = std::min(P, (a.rows + threads - 1) / threads);
    run_tasks((a.rows + rows_per_task - 1) / rows_per_task, measure.bytes(), threads, task, this);
  }
  // Of one sample: of every variable that is drawn its scores and context, and the layers below once.
  double multiply_adds() const {
    const int64_t drawn = a.last - a.first, widest = a.layers > 0 ? a.width[a.layers - 1] : a.variables;
    double network = static_cast<double>(drawn * a.context * widest) / 2;
    for (int64_t l = 0; l < a.layers; ++l)
      network += static_cast<double>(a.width[l] * (l == 0 ? a.variables : a.width[l - 1])) / 2;
    return static_cast<double>(drawn) * Drawer::scores(a) * heads[0].products() +
           static_cast<double>(a.models) * network;
  }

  // Packs the heads; uses a layer's parameters as they are where their type and order allow, else a copy.
  void place(Arena& arena) {
    heads = arena.take<Packed<T>>(a.models);
    const bool filling = heads != nullptr;
    Packed<T> head;
    for (int64_t m = 0; m < a.models; ++m) {
      head.layout(a.heads[m], arena, false, 0);
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
