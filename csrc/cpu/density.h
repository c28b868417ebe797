// Normalised densities of a block of rows by panels of Gauss-Legendre nodes, refined row by row; the formulas and their
// reasons are in fastcsm/reference/conditional_density.py. Scores are evaluated in tiles of points gathered from all
// rows of the block; the rest is float64 arithmetic on a few numbers a panel. No include guard: included once per
// instruction set.

struct DensityOptions {
  double scale, low, high, tolerance, unit, squash;  // squash: u0 of a preconditioned head, or 0
  const double* feature;                             // null for none
  int64_t panels;
  bool inverse;
};

struct DensityRow {
  double point, log_density, log_normalizer, cdf, error, ends[2];
};
constexpr DensityRow kNoDensity{kNaN, kNaN, kNaN, kNaN, kInfinity, {kNaN, kNaN}};

// A row's panels in order, and what they are together.
struct Row {
  Panel panel[kMaxPanels];
  int order[kMaxPanels];
  int count, moves[2];
  bool open;
  double start[kMaxPanels], before[kMaxPanels], mass[kMaxPanels];
  double log_z, heights[2], tails[2], tail_errors[2];  // heights: L at the ends

  const Panel& at(int j) const { return panel[order[j]]; }
  double begin() const { return at(0).a; }
  double end() const { return at(count - 1).a + at(count - 1).h; }

  // Makes room for a panel at place j; returns it.
  Panel& insert(int j) {
    for (int i = count; i > j; --i) order[i] = order[i - 1];
    order[j] = count;
    return panel[count++];
  }

  void combine(double low) {
    double height = 0, most = -kInfinity;
    int origin = 0;
    while (at(origin).a < low) ++origin;
    // Sums begin at `low`: far panels on one side leave no rounding on the other.
    for (int j = origin; j < count; ++j) {
      start[j] = height;
      height += at(j).integral;
    }
    heights[1] = height, height = 0;
    for (int j = origin - 1; j >= 0; --j) start[j] = height -= at(j).integral;
    heights[0] = height;
    for (int j = 0; j < count; ++j) most = larger(most, start[j] + at(j).log_mass);
    const Panel &first = at(0), &last = at(count - 1);
    const double beyond[2] = {log_tail(first.left, first.left_slope) + heights[0],
                              log_tail(-last.right, last.right_slope) + heights[1]};
    // The same estimate at the inner end of the outermost panels: how far off it was there.
    const double inside[2] = {log_tail(first.right, first.right_slope) + heights[0] + first.integral,
                              log_tail(-last.left, last.left_slope) + start[count - 1]};
    for (const double b : beyond)
      if (b < kInfinity) most = larger(most, b);
    double sum = 0;
    for (const double b : beyond)
      if (b < kInfinity) sum += __builtin_exp(b - most);
    for (int j = 0; j < count; ++j) sum += mass[j] = __builtin_exp(start[j] + at(j).log_mass - most);
    log_z = most + __builtin_log(sum);
    for (int side = 0; side < 2; ++side) tails[side] = __builtin_exp(beyond[side] - log_z);
    double below = tails[0] < kInfinity ? tails[0] : 0;
    for (int j = 0; j < count; ++j) {
      mass[j] /= sum;
      before[j] = below;
      below += mass[j];
    }
    for (int side = 0; side < 2; ++side) {
      const double found = mass[side == 0 ? 0 : count - 1] + tails[side];
      const double missed = __builtin_fabs(__builtin_exp(inside[side] - log_z) - found);
      tail_errors[side] = missed < tails[side] ? missed : tails[side];
    }
  }

  // How much an error in the integral of s over panel j moves the answer.
  double influence(int j, double point, bool inverse) const {
    const double below = before[j] + mass[j], above = 1 - before[j];
    if (inverse) return below * above;
    if (point > at(j).a + at(j).h) return below;
    if (point < at(j).a) return above;
    return larger(below, above);
  }

  // Splits panels and adds some where the answer needs it; pending receives the new ones, whose number is returned.
  int refine(const DensityOptions& o, double point, int* pending) {
    double share[kMaxPanels], sum = 0;
    for (int j = 0; j < count; ++j) {
      const double real = at(j).error > at(j).rounding ? at(j).error : 0;  // splitting does not help rounding
      sum += share[j] = influence(j, point, o.inverse) * real + at(j).mass_error * mass[j];
    }
    const double rest[2] = {point, 1 - point}, away[2] = {begin() - point, point - end()};
    const double width = (o.high - o.low) / 4;
    bool move[2];
    int taken = 0;  // by the ends
    for (int side = 0; side < 2; ++side) {
      const bool outside = !o.inverse && away[side] > 0 && moves[side] < kMaxReach;
      const bool inexact = tail_errors[side] > o.tolerance / 8 || (o.inverse && rest[side] < tails[side]);
      move[side] = outside || (inexact && moves[side] < kMaxMoves);
      taken += outside ? moves_to(away[side] / width, moves[side]) : move[side];
    }
    const int wanted = move[0] + move[1], before_count = count;
    const double least = o.tolerance / (4 * count);
    bool split[kMaxPanels];
    int splits = 0, room = kMaxPanels - count - taken;
    for (int j = 0; j < count; ++j) split[j] = false;
    if (sum > o.tolerance / 2) {
      while (splits < room) {  // the widest needs first
        int best = -1;
        for (int j = 0; j < count; ++j)
          if (!split[j] && share[j] > least && (best < 0 || share[j] > share[best])) best = j;
        if (best < 0) break;
        split[best] = true;
        ++splits;
      }
    }
    int news = 0;
    for (int j = before_count - 1; j >= 0; --j) {
      if (!split[j]) continue;
      Panel& right = insert(j + 1);
      Panel& left = panel[order[j]];
      left.h /= 2;
      right.a = left.a + left.h, right.h = left.h;
      pending[news++] = order[j];
      pending[news++] = order[j + 1];
    }
    const bool full = before_count + wanted > kMaxPanels;
    for (int side = 0; side < 2; ++side) {
      if (!move[side] || (full && tails[side] != kInfinity)) continue;
      const double h = width * growth(moves[side]++);
      if (full) {  // the outermost panel is stretched
        const int outermost = order[side == 0 ? 0 : count - 1];
        if (side == 0) panel[outermost].a -= h;
        panel[outermost].h += h;
        pending[news++] = outermost;
        continue;
      }
      const double a = side == 0 ? begin() - h : end();
      Panel& p = insert(side == 0 ? 0 : count);
      p.a = a, p.h = h;
      pending[news++] = count - 1;
    }
    return news;
  }

  bool exists(double point, bool inverse) const {
    return tails[0] < kInfinity && tails[1] < kInfinity && __builtin_fabs(log_z) < kInfinity &&
           (inverse || (begin() <= point && point <= end()));
  }

  DensityRow answer(const Quadrature& q, const DensityOptions& o, double point) const {
    DensityRow r{point, kNaN, kNaN, kNaN, tail_errors[0] + tail_errors[1], {tails[0], tails[1]}};
    const double factor = count < kMaxPanels ? 1 : kUnresolved;
    for (int j = 0; j < count; ++j) {
      r.error += influence(j, point, o.inverse) * (factor * at(j).error + at(j).rounding) + at(j).mass_error * mass[j];
      r.error += kCancelled * __builtin_fabs(at(j).integral);
    }
    if (!(exists(point, o.inverse) && r.error < kInfinity)) return kNoDensity;
    r.log_normalizer = log_z;
    const int j = place(point, o.inverse);
    const Panel& p = at(j);
    const double half = p.h / 2;
    alignas(64) double c[kNodes], density[kFine], d[kFine];
    double sum, value, integral;
    const double most = fine_density(q, p, density, sum);
    from_nodes<kNodes>(p.s, q.coefficients, 1, c);
    for (int k = 0; k < kFine; ++k) d[k] = 0;
    for (int i = 0; i < kFine; ++i)
      for (int k = 0; k < kFine; k += Vec<double>::W)
        (Vec<double>::load(d + k) + Vec<double>(density[i]) * Vec<double>::load(q.fine_coefficients[i] + k))
            .store(d + k);
    const double unit_mass = half * __builtin_exp(start[j] + most - log_z);
    double t = (point - p.a) / half - 1;
    if (o.inverse) {
      if (point < tails[0] || 1 - point < tails[1]) return beyond(r, point);
      t = invert(d, (point - before[j]) / unit_mass);
      r.point = p.a + half * (t + 1);
      r.cdf = point;
    } else {
      series(d, kFine, t, value, integral);
      r.cdf = smaller(larger(before[j] + unit_mass * integral, 0), 1);
    }
    series(c, kNodes, t, value, integral);
    r.log_density = start[j] + half * integral - log_z;
    return r;
  }

  // The panel that holds the point, or the quantile.
  int place(double point, bool inverse) const {
    int j = 0;
    while (j < count - 1 && (inverse ? before[j] + mass[j] : at(j).a + at(j).h) < point) ++j;
    return j;
  }

  // t in [-1, 1] where the integral of the series d reaches the target: Newton steps kept in a bracket.
  static double invert(const double* d, double target) {
    double low = -1, high = 1, t = 0;
    for (int i = 0; i < 50; ++i) {
      double value, integral;
      series(d, kFine, t, value, integral);
      (integral < target ? low : high) = t;
      const double step = t - (integral - target) / value;
      const double next = step >= low && step <= high ? step : (low + high) / 2;
      if (__builtin_fabs(next - t) < 1e-15) return next;
      t = next;
    }
    return t;
  }

  // A quantile beyond the ends, of an exponential tail with the score there.
  DensityRow beyond(DensityRow r, double u) const {
    const bool left = u < tails[0];
    const double s = left ? at(0).left : at(count - 1).right;
    const double away = (left ? __builtin_log(u / tails[0]) : __builtin_log((1 - u) / tails[1])) / s;
    r.point = (left ? begin() : end()) + away;
    r.log_density = heights[left ? 0 : 1] + s * away - log_z;
    r.cdf = u;
    r.error += left ? tails[0] : tails[1];
    return r;
  }

  // The nodes t and d log q(point) / d s(t), NaN where there is no density; returns their number.
  int64_t nodes(const Quadrature& q, double point, double* t, double* weight, double& score) const {
    score = kNaN;
    if (count == 0) {
      for (int i = 0; i < kNodes; ++i) t[i] = 0, weight[i] = kNaN;
      return kNodes;
    }
    const int own = exists(point, false) ? place(point, false) : -1;
    double after = tails[1];
    for (int j = count - 1; j >= 0; --j) {
      const Panel& p = at(j);
      const double half = p.h / 2, x = (point - p.a) / half - 1;
      alignas(64) double density[kFine];
      double sum, value, integral;
      fine_density(q, p, density, sum);
      for (int i = 0; i < kNodes; ++i) {
        double mean = 0;  // of the integral up to X, over the panel
        for (int f = 0; f < kFine; ++f) mean += q.fine_weights[f] * density[f] * q.to_fine[i][f];
        double moved = -mass[j] * mean / sum - after * q.weights[i];
        if (j < own) moved += q.weights[i];
        if (j == own) {
          series(q.coefficients[i], kNodes, x, value, integral);
          moved += integral;
        }
        t[j * kNodes + i] = p.node(q, i);
        weight[j * kNodes + i] = own < 0 ? kNaN : half * moved;
      }
      if (j == own) {
        alignas(64) double c[kNodes];
        from_nodes<kNodes>(p.s, q.coefficients, 1, c);
        series(c, kNodes, x, score, integral);
      }
      after += mass[j];
    }
    return count * kNodes;
  }
};

// The rows of a block.
template <class T>
struct DensityBlock {
  Points<T>* points;
  Row* row;
  int32_t *pending_row, *pending, *point_row;
  T* feature;
  double* rho;  // (rows) of a preconditioned head tau / sigma
  const Quadrature* q;

  void layout(Points<T>& shared, Arena& arena, int64_t rows) {
    points = &shared;
    row = arena.take<Row>(rows);
    pending_row = arena.take<int32_t>(rows * (kMaxPanels + 2));
    pending = arena.take<int32_t>(rows * (kMaxPanels + 2));
    point_row = arena.take<int32_t>(shared.capacity);
    feature = arena.take<T>(shared.capacity);
    rho = arena.take<double>(rows);
    q = &quadrature();
  }

  // Panels for all rows, whose contexts are set.
  void solve(int64_t rows, const DensityOptions& o, const double* point) {
    int64_t waiting = 0;
    const auto queue = [&](int64_t r, int p) {
      pending_row[waiting] = static_cast<int32_t>(r);
      pending[waiting++] = p;
    };
    for (int64_t r = 0; r < rows; ++r) {
      Row& own = row[r];
      own.open = o.inverse ? point[r] >= 0 && point[r] <= 1 : __builtin_fabs(point[r]) < kInfinity;
      own.count = 0, own.moves[0] = own.moves[1] = 0;
      const double width = (o.high - o.low) / static_cast<double>(o.panels);
      for (int p = 0; own.open && p < o.panels; ++p) {
        Panel& panel = own.insert(p);
        panel.a = o.low + width * p, panel.h = width;
        queue(r, p);
      }
    }
    while (waiting > 0 && !stopped()) {
      evaluate(waiting, o);
      waiting = 0;
      for (int64_t r = 0; r < rows; ++r) {
        Row& own = row[r];
        if (!own.open) continue;
        own.combine(o.low);
        int news[kMaxPanels + 2];
        const int n = own.refine(o, point[r], news);
        for (int i = 0; i < n; ++i) queue(r, news[i]);
        own.open = n > 0;
      }
    }
  }

  DensityRow answer(int64_t r, const DensityOptions& o, double point) const {
    return row[r].count == 0 ? kNoDensity : row[r].answer(*q, o, point);
  }

  void evaluate(int64_t waiting, const DensityOptions& o) {
    const int64_t batch = points->capacity / kNodes;
    for (int64_t first = 0; first < waiting && !stopped(); first += batch) {
      const int64_t count = waiting - first < batch ? waiting - first : batch;
      for (int64_t i = 0; i < count; ++i) {
        const Panel& p = row[pending_row[first + i]].panel[pending[first + i]];
        double t[kNodes], derivative[kNodes];
        for (int k = 0; k < kNodes; ++k) t[k] = p.node(*q, k);
        if (o.squash > 0) squash(kNodes, o.squash, t, derivative);
        for (int k = 0; k < kNodes; ++k) {
          points->tile.x[i * kNodes + k] = static_cast<T>(t[k]);
          point_row[i * kNodes + k] = pending_row[first + i];
          if (o.feature != nullptr) feature[i * kNodes + k] = static_cast<T>(*o.feature);
        }
      }
      points->template evaluate<kValue>(count * kNodes, point_row, o.feature == nullptr ? nullptr : feature);
      for (int64_t i = 0; i < count; ++i) {
        Panel& p = row[pending_row[first + i]].panel[pending[first + i]];
        for (int k = 0; k < kNodes; ++k) {
          const double s = static_cast<double>(points->tile.s[i * kNodes + k]);
          p.s[k] = o.squash > 0 ? rho[pending_row[first + i]] * s - p.node(*q, k) : o.scale * s;
        }
        summarize(*q, p, o.unit);
      }
    }
  }
};

// Points a tile may have: whole panels and whole micro-kernels.
template <class T>
int64_t point_tile(const Packed<T>& head) {
  const int64_t rows = tile_rows(head, kBlockBytes) / 48 * 48;
  return rows < 48 ? 48 : rows;
}
