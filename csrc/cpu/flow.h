// Probability flow of a block of rows, each with steps of its own (common/flow.h); formulas as in
// fastcsm/reference/probability_flow.py. The state is float64, the head runs on tiles of the rows still on their way.
// No include guard: included once per instruction set.

struct FlowOptions {
  double sigma_from, sigma_to, tolerance, squash;  // squash: u0 of a preconditioned head, or 0

  // The time of a level, a noise level or of a preconditioned head a row's own, of which a and its square root are.
  double time(double sigma) const { return __builtin_sqrt(squash > 0 ? sigma / (1 + sigma) : sigma); }
};

// d theta / da.
FASTCSM_INLINE double flow_weight(double a) { return 1 / ((1 - a) * (1 - a) + a * a); }

struct FlowRow {
  double x, change, error;
  double v, h, step, end;  // time, next step, the step being taken, last time
  double offset;           // -ln(tau) of a preconditioned head
  double dx[kFlowStages], dlog[kFlowStages];
  bool last;

  double time(int i) const { return i >= 5 && last ? end : v + kFlowTimes[i] * step; }
};

template <class T>
struct FlowBlock {
  Points<T>* points;
  FlowRow* row;
  int32_t* active;
  T* feature;
  double *input, *derivative;  // (rows) what the head reads, and its derivative in x

  void layout(Points<T>& shared, Arena& arena, int64_t rows) {
    points = &shared;
    row = arena.take<FlowRow>(rows);
    active = arena.take<int32_t>(rows);
    feature = arena.take<T>(rows);
    input = arena.take<double>(rows), derivative = arena.take<double>(rows);
  }

  // Slopes of the active rows at stage i.
  template <int kKeep>
  void slopes(int64_t count, int i, const FlowOptions& o) {
    for (int64_t n = 0; n < count; ++n) {
      const FlowRow& r = row[active[n]];
      double y = r.x;
      for (int k = 0; k < i; ++k) y += r.step * (kFlowStage[i][k] * r.dx[k]);
      input[n] = y;
      const double v = r.time(i);
      feature[n] = static_cast<T>(o.squash > 0 ? __builtin_log(v * v / (1 - v * v)) - r.offset : 2 * __builtin_log(v));
    }
    if (o.squash > 0) squash(count, o.squash, input, derivative);
    for (int64_t n = 0; n < count; ++n) points->tile.x[n] = static_cast<T>(input[n]);
    points->template evaluate<kKeep>(count, active, feature);
    for (int64_t n = 0; n < count; ++n) {
      FlowRow& r = row[active[n]];
      const double v = r.time(i);
      r.dx[i] = -2 * v * static_cast<double>(points->tile.s[n]);
      r.dlog[i] = kKeep == kValue ? 0 : 2 * v * static_cast<double>(points->tile.ds[n]);
      if (o.squash > 0) r.dx[i] *= flow_weight(v * v), r.dlog[i] *= flow_weight(v * v) * derivative[n];
    }
  }

  // Carries row[0 ... rows), whose x, offset and contexts are set.
  template <int kKeep>
  void solve(int64_t rows, const FlowOptions& o) {
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const double scale = o.squash > 0 ? __builtin_exp(row[r].offset) : 1;
      row[r].change = row[r].error = row[r].step = 0;
      row[r].v = o.time(o.sigma_from * scale), row[r].end = o.time(o.sigma_to * scale);
      row[r].h = kFirstStep * (row[r].end - row[r].v), row[r].last = false;
      if (row[r].v != row[r].end) active[count++] = static_cast<int32_t>(r);
    }
    if (count == 0) return;
    slopes<kKeep>(count, 0, o);
    for (int attempt = 0; attempt < kMaxSteps && count > 0 && !stopped(); ++attempt) {
      for (int64_t n = 0; n < count; ++n) {
        FlowRow& r = row[active[n]];
        const double left = r.end - r.v;
        r.last = __builtin_fabs(r.h) >= 0.9999 * __builtin_fabs(left);
        r.step = r.last ? left : r.h;
      }
      for (int i = 1; i < kFlowStages; ++i) slopes<kKeep>(count, i, o);
      int64_t kept = 0;
      for (int64_t n = 0; n < count; ++n) {
        const bool done = advance(row[active[n]], o);
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
  static bool advance(FlowRow& r, const FlowOptions& o) {
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
    if (o.squash > 0) off_x /= __builtin_sqrt(flow_weight(low * low));
    const double off = off_x > off_log || off_x != off_x ? off_x : off_log;
    const bool taken = off <= o.tolerance;
    double ratio = off / o.tolerance;
    ratio = ratio < 1e-10 ? 1e-10 : ratio;
    double factor = 0.9 * __builtin_pow(ratio, -0.2);
    factor = factor > kSmallest ? factor : kSmallest;  // also where it is no number
    factor = factor > kLargest ? kLargest : factor;
    r.h = r.step * factor;
    if (!taken) return false;
    r.x += r.step * dx, r.change += r.step * dlog, r.error += off;
    r.v = r.last ? r.end : r.v + r.step;
    r.dx[0] = r.dx[kFlowStages - 1], r.dlog[0] = r.dlog[kFlowStages - 1];
    return r.last;
  }
};
