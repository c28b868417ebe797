// The normalised density of one row by one warp, in float64: panels of Gauss-Legendre nodes, refined where the answer
// needs it. Formulas and their reasons are in fastcsm/reference/quadrature.py; scores come from the caller, a panel at
// a time. Panels are in the warp's part of shared memory, each where it was made, their order beside them.
//
// A lane has two of the panels in order, 2 lane and 2 lane + 1, so that what the row needs of all of them are sums and
// scans over the lanes. Numbers of a panel's nodes are lane % 16's, and so are those of its 16 Legendre coefficients;
// those of the finer rule are lane's. Of both ends of the row, lanes below 16 have the left one and the others the
// right one: their `side`.
#pragma once

#include <limits>

#include "cuda/lanes.h"
#include "common/density_args.h"
#include "common/quadrature.h"

namespace fastcsm {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

// Log-mass beyond a point of density 1 where the score towards the inside is `inward`; infinite if there is none.
FASTCSM_INLINE double log_tail(double inward, double slope) {
  const double ratio = slope / (inward * inward);
  return inward > 0 && ratio < kHeaviest ? -log(inward * (1 - ratio)) : kInfinity;
}

// Tables of a block.
struct DensityTables {
  Quadrature q;
  double top[kTop][kFine];    // of the last coefficients of the finer rule, [k][fine node]
  double legendre[kFine][3];  // P_{k+1} from t P_k and P_{k-1}, and the share of their difference in the integral

  // A barrier must follow.
  FASTCSM_INLINE void load(const Quadrature& from) {
    const double* source = reinterpret_cast<const double*>(&from);
    for (int i = threadIdx.x; i < int(sizeof(q) / sizeof(double)); i += blockDim.x) {
      reinterpret_cast<double*>(&q)[i] = source[i];
    }
    for (int i = threadIdx.x; i < kTop * kFine; i += blockDim.x) {
      const int k = kFine - kTop + i / kFine;
      top[i / kFine][i % kFine] = from.fine_coefficients[i % kFine][k] * (4. / (2 * k + 1));
    }
    for (int k = threadIdx.x; k < kFine; k += blockDim.x) {
      legendre[k][0] = (2 * k + 1.) / (k + 1), legendre[k][1] = double(k) / (k + 1), legendre[k][2] = 1. / (2 * k + 1);
    }
  }

  // Sum of c_k P_k(t), k < n, and its integral from -1 to t.
  FASTCSM_INLINE void series(const double* c, int n, double t, double& value, double& integral) const {
    double before = 1, p = t;
    value = c[0], integral = c[0] * (t + 1);
#pragma unroll 1
    for (int k = 1; k < n; ++k) {
      const double after = legendre[k][0] * t * p - legendre[k][1] * before;
      value += c[k] * p;
      integral += c[k] * (after - before) * legendre[k][2];
      before = p, p = after;
    }
  }
};

// A row's panels [a, a + h], as places and in order.
struct PanelMemory {
  double a[kMaxPanels], h[kMaxPanels], integral[kMaxPanels], log_mass[kMaxPanels], error[kMaxPanels],
      rounding[kMaxPanels], mass_error[kMaxPanels];
  double stage[kWarp];          // what a step hands from lane to lane
  float s[kMaxPanels][kNodes];  // the head's outputs
  uint16_t order[kMaxPanels], pending[kMaxPanels];
};

struct DensityResult {
  double point, log_density, log_normalizer, cdf, error, end;  // end: of the lane's side
};
FASTCSM_INLINE DensityResult no_density() { return {kNaN, kNaN, kNaN, kNaN, kInfinity, kNaN}; }

// kPreconditioned: the score of v is rho r - v with the head's output r.
template <bool kPreconditioned>
class RowDensity {
 public:
  FASTCSM_INLINE RowDensity(const DensityArgs& args, const DensityTables& tables, PanelMemory& memory)
      : args_(args), q_(tables), m_(memory), lane_(threadIdx.x % kWarp), node_(lane_ % kNodes), side_(lane_ / kNodes) {}

  // Begins with panels of equal width, and rho of a preconditioned head. Returns whether the point, or the probability,
  // is one that has an answer.
  FASTCSM_INLINE bool begin(double point, double rho) {
    rho_ = rho;
    point_ = point, count_ = pending_ = int(args_.panels), moves_ = 0;
    log_z_ = tail_ = kNaN;
    const double width = (args_.high - args_.low) / count_;
    __syncwarp();
    if (lane_ < count_) {
      m_.a[lane_] = args_.low + width * lane_, m_.h[lane_] = width;
      m_.order[lane_] = m_.pending[lane_] = uint16_t(lane_);
    }
    __syncwarp();
    return args_.inverse ? point >= 0 && point <= 1 : fabs(point) < kInfinity;
  }

  // Panels that wait for scores, by number.
  FASTCSM_INLINE int pending() const { return pending_; }
  FASTCSM_INLINE int pending(int i) const { return m_.pending[i]; }

  // The lane's node of a panel.
  FASTCSM_INLINE double node(int panel) const { return m_.a[panel] + m_.h[panel] / 2 * (q_.q.nodes[node_] + 1); }

  // Takes the head's output at the lane's node and finds what the row needs of the panel.
  FASTCSM_INLINE void summarize(int panel, float output) {
    const double half = m_.h[panel] / 2, s = score(panel, output);
    if (side_ == 0) m_.s[panel][node_] = output;
    put(s);
    double most;
    const double density = fine_density(half, most);
    // The Legendre coefficients of s, or its integrals to the nodes.
    double c = 0;
    const double* table = side_ == 0 ? q_.q.coefficients[0] : q_.q.to_nodes[0];
#pragma unroll
    for (int i = 0; i < kNodes; ++i) c = fma(m_.stage[i], table[i * kNodes + node_], c);
    const double weight = q_.q.weights[node_];
    double sums[8] = {density * q_.q.fine_weights[lane_], side_ == 0 ? 0 : weight * exp(half * c - most),
                      side_ == 0 ? weight * s : 0, side_ == 0 ? weight * fabs(s) : 0};
#pragma unroll
    for (int k = 0; k < kTop; ++k) sums[4 + k] = density * q_.top[k][lane_];
    const double sum = sum_over_lanes<kWarp>(sums, lane_);
    const double mass = of_lane(sum, 0), rough = of_lane(sum, 1), integral = of_lane(sum, 2), size = of_lane(sum, 3);
    const double inside = of_lane(sum_of_four(fabs(sum)), 4);
    // |integral from -1 of P_k| <= 2 / (2k + 1)
    const double shares = sum_of_four(fabs(c) * (2. / (2 * node_ + 1)));
    const double top = of_lane(shares, kNodes - 1), middle = of_lane(shares, kNodes - 1 - kTop);
    const double extreme = most_over_lanes<kNodes>(side_ == 0 ? s : -s);
    const double range = of_lane(extreme, 0) + of_lane(extreme, kNodes);
    if (lane_ != 0) return;
    m_.integral[panel] = half * integral;
    m_.log_mass[panel] = most + log(half * mass);
    m_.error[panel] = 2 * half * top * fmax(2 * top < middle ? top / (middle - top) : 1, kLeast);
    const double place = fmax(fabs(m_.a[panel]), fabs(m_.a[panel] + m_.h[panel]));
    m_.rounding[panel] = kRounding * args_.unit * (half * size + place * range);
    m_.mass_error[panel] = fmax(fabs(rough - mass), inside) / mass;
  }

  // Puts the panels together, then splits some and adds some where the answer needs it: those are pending.
  FASTCSM_INLINE void refine() {
    __syncwarp();
    combine();
    double share[2], sum = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      share[i] = 0;
      if (!exists(i)) continue;
      const int p = panel(i);
      const double real = m_.error[p] > m_.rounding[p] ? m_.error[p] : 0;  // splitting does not help rounding
      share[i] = influence(i) * real + m_.mass_error[p] * mass_[i];
      sum += share[i];
    }
    sum = sum_over_lanes(sum);
    const double away = side_ == 0 ? begin_of_row() - point_ : point_ - end_of_row();
    const bool outside = !args_.inverse && away > 0 && moves_ < kMaxReach;
    const bool inexact = tail_error_ > args_.tolerance / 8 || (args_.inverse && rest() < tail_);
    int move = outside || (inexact && moves_ < kMaxMoves);
    const int wanted = move + __shfl_xor_sync(kAll, move, kNodes);
    int taken = move;  // by the side's end
    if (outside) taken = moves_to(away / first_move(), moves_);
    taken += __shfl_xor_sync(kAll, taken, kNodes);
    int split[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      split[i] = exists(i) && sum > args_.tolerance / 2 && share[i] > args_.tolerance / (4 * count_);
    }
    const int room = kMaxPanels - count_ - taken;
    if (sum_over_lanes(split[0] + split[1]) > room) keep_widest(share, split, room);
    const bool full = count_ + wanted > kMaxPanels;
    const int stretch = full && move && tail_ == kInfinity;
    insert(split, full ? 0 : move);
    if (full) widen(stretch);
  }

  // The answer, which all lanes get alike; of a row without one NaN, and an infinite error.
  FASTCSM_INLINE DensityResult answer() {
    const double factor = count_ < kMaxPanels ? 1 : kUnresolved;
    double error = node_ == 0 ? tail_error_ : 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!exists(i)) continue;
      const int p = panel(i);
      error += influence(i) * (factor * m_.error[p] + m_.rounding[p]) + m_.mass_error[p] * mass_[i];
      error += kCancelled * fabs(m_.integral[p]);
    }
    DensityResult r{kNaN, kNaN, log_z_, kNaN, sum_over_lanes(error), tail_};
    if (!(sound() && r.error < kInfinity)) return no_density();

    const int j = place();
    const double start = of_panel(start_, j), before = of_panel(before_, j);
    const int p = m_.order[j];
    const double a = m_.a[p], half = m_.h[p] / 2;
    double most, value, integral;
    put_scores(p);
    const double density = fine_density(half, most), c = coefficient();
    const double unit_mass = half * exp(start + most - log_z_);
    put(density);
    double d = 0;
#pragma unroll
    for (int f = 0; f < kFine; ++f) d = fma(m_.stage[f], q_.q.fine_coefficients[f][lane_], d);
    put(d);
    double t = (point_ - a) / half - 1;
    if (args_.inverse) {
      t = invert((point_ - before) / unit_mass);
      r.point = a + half * (t + 1);
      r.cdf = point_;
    } else {
      q_.series(m_.stage, kFine, t, value, integral);
      r.point = point_;
      r.cdf = fmin(fmax(before + unit_mass * integral, 0.), 1.);
    }
    put(c);
    q_.series(m_.stage, kNodes, t, value, integral);
    r.log_density = start + half * integral - log_z_;
    return args_.inverse ? in_tail(r) : r;
  }

  // The nodes t of every panel in order, and the derivatives of log q(point) in the scores there: give(i, t, weight)
  // for node i. Returns the score at the point; all NaN but t if the row has no density.
  template <class Give>
  FASTCSM_INLINE double gradient(bool valid, const Give& give) {
    valid = valid && sound();
    const int own = valid ? place() : 0;
    double after = 1, score = kNaN;
#pragma unroll 1
    for (int j = 0; j < count_; ++j) {
      const int p = m_.order[j];
      const double t = node(p);
      double weight = kNaN;
      if (valid) {
        const double half = m_.h[p] / 2, x = (point_ - m_.a[p]) / half - 1, mass = of_panel(mass_, j);
        after = 1 - of_panel(before_, j) - mass;
        double most, value, integral;
        put_scores(p);
        const double density = fine_density(half, most) * q_.q.fine_weights[lane_], c = coefficient();
        const double sum = sum_over_lanes(density);
        put(density);
        double mean = 0;  // of the integral up to X, over the panel
#pragma unroll 4
        for (int i = 0; i < kFine; ++i) {
          const int f = (i + node_) % kFine;  // other banks for other nodes
          mean = fma(m_.stage[f], q_.q.to_fine[node_][f], mean);
        }
        double moved = -mass * mean / sum - after * q_.q.weights[node_];
        if (j < own) moved += q_.q.weights[node_];
        if (j == own) {
          q_.series(q_.q.coefficients[node_], kNodes, x, value, integral);
          moved += integral;
          put(c);
          q_.series(m_.stage, kNodes, x, score, integral);
        }
        weight = half * moved;
      }
      if (side_ == 0) give(j * kNodes + node_, t, weight);
    }
    return score;
  }
  FASTCSM_INLINE int count() const { return count_; }

 private:
  FASTCSM_INLINE bool exists(int i) const { return 2 * lane_ + i < count_; }
  FASTCSM_INLINE int panel(int i) const { return m_.order[2 * lane_ + i]; }
  FASTCSM_INLINE static double of_lane(double x, int lane) { return __shfl_sync(kAll, x, lane); }
  // What the lane with panel j in order has of it; j is the same in all lanes.
  FASTCSM_INLINE static double of_panel(const double (&x)[2], int j) { return of_lane(j % 2 ? x[1] : x[0], j / 2); }
  FASTCSM_INLINE static double sum_of_four(double x) {
    x += __shfl_xor_sync(kAll, x, 1);
    return x + __shfl_xor_sync(kAll, x, 2);
  }
  FASTCSM_INLINE double begin_of_row() const { return m_.a[m_.order[0]]; }
  FASTCSM_INLINE double end_of_row() const {
    const int p = m_.order[count_ - 1];
    return m_.a[p] + m_.h[p];
  }
  // Whether the row has an answer.
  FASTCSM_INLINE bool sound() const {
    return of_lane(tail_, 0) < kInfinity && of_lane(tail_, kNodes) < kInfinity && fabs(log_z_) < kInfinity &&
           (args_.inverse || (begin_of_row() <= point_ && point_ <= end_of_row()));
  }
  // The probability on the point's side.
  FASTCSM_INLINE double rest() const { return side_ == 0 ? point_ : 1 - point_; }
  FASTCSM_INLINE double first_move() const { return (args_.high - args_.low) / 4; }

  // Hands every lane's number to all.
  FASTCSM_INLINE void put(double x) {
    __syncwarp();
    m_.stage[lane_] = x;
    __syncwarp();
  }
  FASTCSM_INLINE void put_scores(int panel) { put(score(panel, m_.s[panel][node_])); }
  // The score at the lane's node of a panel, from the head's output there.
  FASTCSM_INLINE double score(int panel, float output) const {
    return kPreconditioned ? rho_ * double(output) - node(panel) : args_.score_scale * double(output);
  }

  // The panel whose scores were put: exp(L) at the lane's fine node relative to the largest, whose logarithm is `most`;
  FASTCSM_INLINE double fine_density(double half, double& most) const {
    double local = 0;
#pragma unroll
    for (int i = 0; i < kNodes; ++i) local = fma(m_.stage[i], q_.q.to_fine[i][lane_], local);
    local *= half;
    most = most_over_lanes<kWarp>(local);
    return exp(local - most);
  }
  // and the lane's coefficient of s, of the second 16 numbers for the upper lanes.
  FASTCSM_INLINE double coefficient() const {
    double c = 0;
#pragma unroll
    for (int i = 0; i < kNodes; ++i) c = fma(m_.stage[side_ * kNodes + i], q_.q.coefficients[i][node_], c);
    return c;
  }

  FASTCSM_INLINE void combine() {
    // Sums begin at `low`: far panels on one side leave no rounding on the other.
    double integral[2], below[2], log_mass[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const double all = exists(i) ? m_.integral[panel(i)] : 0;
      const bool left = exists(i) && m_.a[panel(i)] < args_.low;
      integral[i] = left ? 0 : all, below[i] = left ? all : 0;
      log_mass[i] = exists(i) ? m_.log_mass[panel(i)] : -kInfinity;
    }
    start_[0] = sum_before(integral[0] + integral[1], lane_);
    start_[1] = start_[0] + integral[0];
    const double last_height = of_lane(start_[1] + integral[1], kWarp - 1);
    if (begin_of_row() < args_.low) {
      const double after = sum_after(below[0] + below[1], lane_) + below[1];
      start_[1] -= after;
      start_[0] -= after + below[0];
    }
    const double first_height = of_lane(start_[0], 0);
    height_ = side_ == 0 ? first_height : last_height;

    // s and s' at the ends of the side's outermost panel: outwards the row's end, inwards the panel's other one.
    const int outermost = m_.order[side_ == 0 ? 0 : count_ - 1];
    put_scores(outermost);
    const double c = coefficient(), sign = node_ % 2 == 0 ? 1 : -1;
    const double slope = node_ * (node_ + 1) / m_.h[outermost];
    double sums[4] = {sign * c, c, -sign * slope * c, slope * c};
    const double end = sum_over_lanes<kNodes>(sums, lane_);
    const int first = side_ * kNodes;
    const double left = of_lane(end, first), right = of_lane(end, first + 1);
    const double left_slope = of_lane(end, first + 2), right_slope = of_lane(end, first + 3);
    end_score_ = side_ == 0 ? left : right;
    const double last_start = of_panel(start_, count_ - 1);
    double beyond, inside;
    if (side_ == 0) {
      beyond = log_tail(left, left_slope) + height_;
      inside = log_tail(right, right_slope) + height_ + m_.integral[outermost];
    } else {
      beyond = log_tail(-right, right_slope) + height_;
      inside = log_tail(-left, left_slope) + last_start;
    }

    double most = beyond < kInfinity ? beyond : -kInfinity;
#pragma unroll
    for (int i = 0; i < 2; ++i) most = fmax(most, start_[i] + log_mass[i]);
    most = most_over_lanes<kWarp>(most);
    double sum = node_ == 0 && beyond < kInfinity ? exp(beyond - most) : 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) sum += mass_[i] = exp(start_[i] + log_mass[i] - most);
    sum = sum_over_lanes(sum);
    log_z_ = most + log(sum);
    tail_ = exp(beyond - log_z_);
#pragma unroll
    for (int i = 0; i < 2; ++i) mass_[i] /= sum;
    const double left_tail = of_lane(tail_, 0);
    before_[0] = (left_tail < kInfinity ? left_tail : 0) + sum_before(mass_[0] + mass_[1], lane_);
    before_[1] = before_[0] + mass_[0];
    // The same estimate at the inner end of the outermost panel: how far off it was there.
    const double first_mass = of_panel(mass_, 0), last_mass = of_panel(mass_, count_ - 1);
    const double missed = fabs(exp(inside - log_z_) - ((side_ == 0 ? first_mass : last_mass) + tail_));
    tail_error_ = missed < tail_ ? missed : tail_;
  }

  // How much an error in the integral of s over the lane's i-th panel moves the answer.
  FASTCSM_INLINE double influence(int i) const {
    const double below = before_[i] + mass_[i], above = 1 - before_[i];
    if (args_.inverse) return below * above;
    const int p = panel(i);
    if (point_ > m_.a[p] + m_.h[p]) return below;
    if (point_ < m_.a[p]) return above;
    return fmax(below, above);
  }

  // Leaves of the splits the `room` widest shares, the first where they are equal.
  FASTCSM_INLINE void keep_widest(const double (&share)[2], int (&split)[2], int room) const {
    const double wanted[2] = {split[0] ? share[0] : -1, split[1] ? share[1] : -1};
    int rank[2] = {0, 0};
#pragma unroll 1
    for (int j = 0; j < count_; ++j) {
      const double other = of_panel(wanted, j);
#pragma unroll
      for (int i = 0; i < 2; ++i) rank[i] += other > wanted[i] || (other == wanted[i] && j < 2 * lane_ + i);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) split[i] = split[i] && rank[i] < room;
  }

  // Splits panels in halves, moves the row's ends outwards, and lists what is new.
  FASTCSM_INLINE void insert(const int (&split)[2], int move) {
    const int splits = sum_over_lanes(split[0] + split[1]), rank = sum_before(split[0] + split[1], lane_);
    const int left = __shfl_sync(kAll, move, 0), right = __shfl_sync(kAll, move, kNodes);
    const double end = side_ == 0 ? begin_of_row() : end_of_row();
    const int own[2] = {exists(0) ? panel(0) : 0, exists(1) ? panel(1) : 0};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!exists(i)) continue;
      const int before = rank + (i == 1 ? split[0] : 0), to = left + 2 * lane_ + i + before, p = own[i];
      m_.order[to] = uint16_t(p);
      if (!split[i]) continue;
      const int half = count_ + before;
      m_.order[to + 1] = uint16_t(half);
      m_.h[p] /= 2;
      m_.a[half] = m_.a[p] + m_.h[p], m_.h[half] = m_.h[p];
      m_.pending[2 * before] = uint16_t(p), m_.pending[2 * before + 1] = uint16_t(half);
    }
    if (move) {
      const double width = first_move() * growth(moves_);
      const int p = count_ + splits + (side_ == 1 ? left : 0);
      if (node_ == 0) {
        m_.order[side_ == 0 ? 0 : p] = uint16_t(p);
        m_.a[p] = side_ == 0 ? end - width : end, m_.h[p] = width;
        m_.pending[2 * splits + (side_ == 1 ? left : 0)] = uint16_t(p);
      }
      ++moves_;
    }
    count_ += splits + left + right;
    pending_ = 2 * splits + left + right;
    __syncwarp();
  }

  // Stretches the outermost panels instead.
  FASTCSM_INLINE void widen(int stretch) {
    const int left = __shfl_sync(kAll, stretch, 0), right = __shfl_sync(kAll, stretch, kNodes);
    if (stretch) {
      const double width = first_move() * growth(moves_);
      const int p = m_.order[side_ == 0 ? 0 : count_ - 1];
      if (node_ == 0) {
        if (side_ == 0) m_.a[p] -= width;
        m_.h[p] += width;
        m_.pending[side_ == 1 ? left : 0] = uint16_t(p);
      }
      ++moves_;
    }
    pending_ = left + right;
    __syncwarp();
  }

  // The place in order of the panel that holds the point, or the quantile.
  FASTCSM_INLINE int place() const {
    int below = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!exists(i)) continue;
      const int p = panel(i);
      below += (args_.inverse ? before_[i] + mass_[i] : m_.a[p] + m_.h[p]) < point_;
    }
    below = sum_over_lanes(below);
    return below < count_ ? below : count_ - 1;
  }

  // t in [-1, 1] where the integral of the series that was put reaches the target: Newton steps kept in a bracket.
  FASTCSM_INLINE double invert(double target) const {
    double low = -1, high = 1, t = 0;
#pragma unroll 1
    for (int i = 0; i < 50; ++i) {
      double value, integral;
      q_.series(m_.stage, kFine, t, value, integral);
      (integral < target ? low : high) = t;
      const double step = t - (integral - target) / value;
      const double next = step >= low && step <= high ? step : (low + high) / 2;
      if (fabs(next - t) < 1e-15) return next;
      t = next;
    }
    return t;
  }

  // A quantile beyond the ends, of an exponential tail with the score there; others as they are.
  FASTCSM_INLINE DensityResult in_tail(DensityResult r) const {
    const double away = log(rest() / tail_) / end_score_;
    const double x = (side_ == 0 ? begin_of_row() : end_of_row()) + away;
    const double log_density = height_ + end_score_ * away - log_z_;
    const int outside = rest() < tail_;
#pragma unroll
    for (int side = 1; side >= 0; --side) {
      const double end_x = of_lane(x, side * kNodes), end_density = of_lane(log_density, side * kNodes);
      const double tail = of_lane(tail_, side * kNodes);
      if (!__shfl_sync(kAll, outside, side * kNodes)) continue;
      r.point = end_x, r.log_density = end_density;
      r.error += tail;
    }
    return r;
  }

  const DensityArgs& args_;
  const DensityTables& q_;
  PanelMemory& m_;
  int lane_, node_, side_;
  double point_, rho_;
  int count_, pending_, moves_;
  double start_[2], before_[2], mass_[2];  // L at the panels' left ends, probability left of them and of them
  double log_z_, height_, tail_, tail_error_, end_score_;  // the last four of the side's end
};

}  // namespace fastcsm
