// The head at many points of few rows: a point takes its row's share of the first layer, which is computed once a row.
// No include guard: included once per instruction set.

template <class T>
struct Points {
  const Packed<T>* head;
  Tile<T> tile;   // of points
  T *base, *pre;  // (rows, H_1) the context's share of a_1; (points, H_1) the same of each point
  int64_t capacity;

  void layout(const Packed<T>& h, Arena& arena, int64_t rows, int64_t points) {
    head = &h;
    capacity = points;
    base = arena.take<T>(rows * h.ld[0]);
    pre = arena.take<T>(points * h.ld[0]);
    tile.layout(h, arena, points, false);
  }

  // Context feature j of row r is at(r, j) for j < given, 0 for the others.
  template <class At>
  void set_context(int64_t rows, int64_t given, At at) {
    for (int64_t begin = 0; begin < rows; begin += capacity) {
      const int64_t count = rows - begin < capacity ? rows - begin : capacity;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t j = 0; j < head->ld_in; ++j) tile.in[r * head->ld_in + j] = j < given ? at(begin + r, j) : T(0);
      gemm<T>(count, head->P[0], head->C, tile.in, head->ld_in, head->forward[0], nullptr, base + begin * head->ld[0],
              head->ld[0], tile.scratch);
    }
    memset(tile.in, 0, capacity * head->ld_in * sizeof(T));
    memset(tile.tin, 0, capacity * head->ld_features * sizeof(T));
  }

  // s, and with kTangent s', into tile.s and tile.ds, at the points tile.x[i] of rows row[i]; feature[i] is the last
  // context feature (null: none is missing).
  template <int kKeep>
  void evaluate(int64_t count, const int32_t* row, const T* feature) {
    const int64_t ld = head->ld[0], P = head->P[0], F = head->F;
    tile.rows = count;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = base + row[i] * ld;
      T* to = pre + i * ld;
      if (feature == nullptr) {
        memcpy(to, from, P * sizeof(T));
        continue;
      }
      const Vec<T> v(feature[i]);
      for (int64_t j = 0; j < P; j += Vec<T>::W)
        (Vec<T>::load(from + j) + v * Vec<T>::load(head->stage_weight + j)).store(to + j);
    }
    if (F == 1) {
      activation_pass<T, kKeep>(*head, tile, 0, pre, head->x_weight);
    } else {
      for (int64_t i = 0; i < count; ++i)
        load_features<T>(*head, tile.x[i], tile.in + i * head->ld_in,
                         kKeep == kValue ? nullptr : tile.tin + i * head->ld_features);
      gemm<T>(count, P, F, tile.in, head->ld_in, head->features_forward, pre, tile.zu[0], ld, tile.scratch);
      if (kKeep != kValue)
        gemm<T>(count, P, F, tile.tin, head->ld_features, head->features_forward, nullptr, tile.zu[0] + count * ld, ld,
                tile.scratch);
      activation_pass<T, kKeep>(*head, tile, 0, tile.zu[0], nullptr);
    }
    forward_rest<T, kKeep>(*head, tile);
  }
};
