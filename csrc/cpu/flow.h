// Probability flow of a block of rows, each with steps of its own (common/flow.h); formulas as in
// fastcsm/reference/probability_flow.py. The state is float64, the head runs on tiles of the rows still on their way.
// No include guard: included once per instruction set.

struct FlowRow {
  double x, change, error;
  double v, h, step;  // time, next step, the step being taken
  double dx[kFlowStages], dlog[kFlowStages];
  bool last;
};

template <class T>
struct FlowBlock {
  Points<T>* points;
  FlowRow* row;
  int32_t* active;
  T* feature;

  void layout(Points<T>& shared, Arena& arena, int64_t rows) {
    points = &shared;
    row = arena.take<FlowRow>(rows);
    active = arena.take<int32_t>(rows);
    feature = arena.take<T>(rows);
  }

  // Slopes of the active rows at stage i.
  template <int kKeep>
  void slopes(int64_t count, int i, double end) {
    for (int64_t n = 0; n < count; ++n) {
      const FlowRow& r = row[active[n]];
      double y = r.x;
      for (int k = 0; k < i; ++k) y += r.step * (kFlowStage[i][k] * r.dx[k]);
      points->tile.x[n] = static_cast<T>(y);
      feature[n] = static_cast<T>(2 * __builtin_log(time(r, i, end)));
    }
    points->template evaluate<kKeep>(count, active, feature);
    for (int64_t n = 0; n < count; ++n) {
      FlowRow& r = row[active[n]];
      const double v = time(r, i, end);
      r.dx[i] = -2 * v * static_cast<double>(points->tile.s[n]);
      r.dlog[i] = kKeep == kValue ? 0 : 2 * v * static_cast<double>(points->tile.ds[n]);
    }
  }
  static double time(const FlowRow& r, int i, double end) {
    return i >= 5 && r.last ? end : r.v + kFlowTimes[i] * r.step;
  }

  // Carries row[0 ... rows), whose x and contexts are set.
  template <int kKeep>
  void solve(int64_t rows, double sigma_from, double sigma_to, double tolerance) {
    const double begin = __builtin_sqrt(sigma_from), end = __builtin_sqrt(sigma_to);
    for (int64_t r = 0; r < rows; ++r) {
      row[r].change = row[r].error = row[r].step = 0;
      row[r].v = begin, row[r].h = kFirstStep * (end - begin), row[r].last = false;
      active[r] = static_cast<int32_t>(r);
    }
    if (begin == end) return;
    int64_t count = rows;
    slopes<kKeep>(count, 0, end);
    for (int attempt = 0; attempt < kMaxSteps && count > 0 && !stopped(); ++attempt) {
      for (int64_t n = 0; n < count; ++n) {
        FlowRow& r = row[active[n]];
        const double left = end - r.v;
        r.last = __builtin_fabs(r.h) >= 0.9999 * __builtin_fabs(left);
        r.step = r.last ? left : r.h;
      }
      for (int i = 1; i < kFlowStages; ++i) slopes<kKeep>(count, i, end);
      int64_t kept = 0;
      for (int64_t n = 0; n < count; ++n) {
        const bool done = advance(row[active[n]], end, tolerance);
        if (!done) active[kept++] = active[n];
      }
      count = kept;
    }
    for (int64_t n = 0; n < count; ++n) {
      FlowRow& r = row[active[n]];
      r.x = r.change = __builtin_nan(""), r.error = __builtin_inf();
    }
  }

  // Takes the step if its error allows; whether the row has arrived.
  static bool advance(FlowRow& r, double end, double tolerance) {
    double dx = 0, dlog = 0, off_x = 0, off_log = 0;
    for (int i = 0; i < kFlowStages; ++i) {
      off_x += kFlowError[i] * r.dx[i];
      off_log += kFlowError[i] * r.dlog[i];
    }
    for (int i = 0; i < kFlowStages - 1; ++i) {
      dx += kFlowStage[kFlowStages - 1][i] * r.dx[i];
      dlog += kFlowStage[kFlowStages - 1][i] * r.dlog[i];
    }
    const double low = r.v < r.v + r.step ? r.v : r.v + r.step;
    off_x = __builtin_fabs(r.step * off_x) / (low * low), off_log = __builtin_fabs(r.step * off_log);
    const double off = off_x > off_log || off_x != off_x ? off_x : off_log;
    const bool taken = off <= tolerance;
    double ratio = off / tolerance;
    ratio = ratio < 1e-10 ? 1e-10 : ratio;
    double factor = 0.9 * __builtin_pow(ratio, -0.2);
    factor = factor > kSmallest ? factor : kSmallest;  // also where it is no number
    factor = factor > kLargest ? kLargest : factor;
    r.h = r.step * factor;
    if (!taken) return false;
    r.x += r.step * dx, r.change += r.step * dlog, r.error += off;
    r.v = r.last ? end : r.v + r.step;
    r.dx[0] = r.dx[kFlowStages - 1], r.dlog[0] = r.dlog[kFlowStages - 1];
    return r.last;
  }
};
