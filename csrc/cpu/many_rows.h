// Many prototypes: one block of rows from features to active affinities and what their losses need,
//   A_ij = a_ij if the hinge of class j is active, else 0   (stored at the nearest prototype of the
//   class; the own class is 0), c_ij = u_i A_ij for j != y,  u_i = (2 / sigma) m_i,   with the own
//   class kept apart as the scalar c_i,y.
// Distances come from a matrix product, decisions do not: an entry whose hinge or nearest centre is
// within the product's error is computed again by direct differences. The own class is always
// direct.
//   A pair with |f|^2 + |w|^2 > 64 q is near, and its A_ij is stored with a minus: the backward's
// sums of products f_i sum_j A_ij - sum_j A_ij w_j would lose the digits of f_i - w_j. The norms
// are those about the mean where products are taken about it.
#pragma once

#include "../core/saved.h"
#include "few_forward.h"
#include "many_geometry.h"

namespace cfal {
namespace CFAL_ISA {

// Columns of the row state.
enum RowState : int64_t {
  kSlope = 0,
  kOwn = 1,
  kDiversity = 2,
  kOwnCentre = 3,
  kActiveSum = 4,
  kHasNear = 5
};

template <class G>
constexpr double kProductError = sizeof(G) == 8 ? 4e-16 : 3e-7;
// Error of q / sigma that is passed on; beyond it the entry is computed directly.
template <class T>
constexpr double kToleratedError = sizeof(T) == 8 ? 2e-13 : 4e-6;

// Squared distance of a near pair, as a share of |f|^2 + |w|^2.
constexpr double kNearShare = 1.0 / 64;

template <class G>
struct HingeSums {
  Vec<G> hinge{}, affinity{};  // of the active hinges
  Vec<G> largest{};            // affinity of an active hinge
  IntVec<G> active{},
      doubtful{};  // masks: -1 for each active hinge; any bit where a hinge is in doubt
};

// Hinges of one register of distances, from their product's error bound.
template <class G>
class HingeConstants {
 public:
  HingeConstants(const Problem& p, double s, double error, bool direct)
      : scale_(Vec<G>{} + static_cast<G>(-1.0 / p.sigma)),
        slack_(Vec<G>{} + static_cast<G>(p.margin - s)),
        band_(Vec<G>{} + static_cast<G>(2.0 * error + 8.0 * kProductError<G>)),
        vanishing_(Vec<G>{} + static_cast<G>(-750.0 - error)),
        direct_(direct) {}

  // The active affinities; -1 where the hinge h = lambda + a - s is within the error of 0. Lanes
  // outside count nowhere.
  Vec<G> hinges(Vec<G> distance, IntVec<G> inside, HingeSums<G>& sums) const {
    const Vec<G> exponent = distance * scale_, a = exp_nonpositive<G>(exponent), h = slack_ + a;
    const Vec<G> doubt =
        band_ * (a + static_cast<G>(0.05));  // of a, and of the rounding of lambda - s
    IntVec<G> on = h > doubt, off = h < -doubt;
    if (direct_) {  // nothing but an affinity of exactly 0 is beyond doubt
      const IntVec<G> vanished = exponent < vanishing_;
      on &= vanished;
      off &= vanished;
    }
    on &= inside;
    const IntVec<G> unsure = ~(on | off) & inside;
    const Vec<G> zero{}, kept = on ? a : zero;
    sums.hinge += on ? h : zero;
    sums.affinity += kept;
    sums.largest = kept > sums.largest ? kept : sums.largest;
    sums.active += on;
    sums.doubtful |= unsure;
    return unsure ? zero - G{1} : kept;
  }

 private:
  Vec<G> scale_, slack_, band_, vanishing_;
  bool direct_;
};

// What the distances of a row come to.
struct RowAtHand {
  int64_t y;
  bool counted, finite;
  int64_t own_centre;                      // within the class
  double ratio, s;                         // q_iy / sigma and the own affinity
  double hinge_sum, active, affinity_sum;  // over the active hinges; affinities without near pairs
  double largest;                          // affinity of an active hinge, of the classes at hand
  bool near;                               // whether there are near pairs
};

// The loss of a row, once R is known, and its state [kRowState].
template <class T>
double finish_row(const Problem& p, const RowConstants& shared, const RowAtHand& row, T* state) {
  for (int64_t i = 0; i < ManyLayout::kRowState; ++i) state[i] = T{0};
  if (!row.counted) return 0.0;
  const double poison = row.finite ? 0.0 : __builtin_nan("");
  const RowTerms terms = row_terms({complement_of(row.ratio), row.hinge_sum + poison, row.active,
                                    shared.diversity, p.class_weight_at(row.y)},
                                   p.gamma, p.detach_focal);
  state[kSlope] = static_cast<T>(shared.u * terms.hinge_slope + poison);
  state[kOwn] = static_cast<T>((row.s == 0.0 ? 0.0 : shared.u * terms.own_slope * row.s) + poison);
  state[kDiversity] = static_cast<T>(
      p.has_diversity() ? p.diversity_weight * terms.hinge_slope * shared.scale : 0.0);
  state[kOwnCentre] = static_cast<T>(row.own_centre);
  state[kActiveSum] = static_cast<T>(row.affinity_sum + poison);
  state[kHasNear] = row.near && row.finite ? T{1} : T{0};
  return terms.loss;
}

template <class T>
class ManyRows {
 public:
  ManyRows(const Problem& p, const Runtime& runtime, const ManyGeometry<T>& geometry,
           int64_t max_rows)
      : p_(p), runtime_(runtime), geometry_(geometry), features_(p, max_rows, p.D) {
    if (p.M > 1) {
      nearest_.resize(p.C);
      compact_.resize(p.C);
      compact_q_.resize(p.C);
    }
    if (uses_tiles()) {
      const int64_t fit = (int64_t{1} << 17) / p.D;  // 1 MiB of doubles
      const int64_t classes = (fit < 512 ? fit : 512) / p.M;
      tile_ = (classes < 1 ? 1 : (classes < p.C ? classes : p.C)) * p.M;
      centred_features_.resize(max_rows * p.D);
      centred_prototypes_.resize(tile_ * p.D);
      products_.resize(max_rows * tile_);
    }
  }

  // Rows [first, first + rows), at most max_rows of them: active [rows, K], at_hand [rows].
  void run(int64_t first, int64_t rows, T* active, RowAtHand* at_hand) {
    const int64_t K = p_.K(), D = p_.D;
    const T* f = features_.rows(first, rows, 0, D);
    for (int64_t r = 0; r < rows; ++r) start_row(first + r, f + r * features_.ld(), at_hand[r]);
    if (uses_tiles()) {
      geometry_.centre(f, features_.ld(), rows, centred_features_.get());
      for (int64_t k = 0; k < K; k += tile_) {
        const int64_t n = K - k < tile_ ? K - k : tile_;
        geometry_.centre(geometry_.prototypes.row(k), D, n, centred_prototypes_.get());
        runtime_.gemm_f64(false, true, rows, n, D, 1.0, centred_features_.get(), D,
                          centred_prototypes_.get(), D, 0.0, products_.get(), n);
        for (int64_t r = 0; r < rows; ++r) {
          const double norm = squared_norm(centred_features_.get() + r * D, D);
          add_classes(at_hand[r], f + r * features_.ld(), norm, geometry_.centred_norm.get() + k, k,
                      n, products_.get() + r * n, active + r * K + k);
        }
      }
    } else {
      gemm(runtime_, false, true, rows, K, D, 1.0, f, features_.ld(), geometry_.prototypes.get(), D,
           0.0, active, K);
      for (int64_t r = 0; r < rows; ++r)
        add_classes(at_hand[r], f + r * features_.ld(), geometry_.feature_norm[first + r],
                    geometry_.rounded_norm.get(), 0, K, active + r * K, active + r * K);
    }
    for (int64_t r = 0; r < rows; ++r)
      if (at_hand[r].counted && !at_hand[r].finite)
        for (int64_t k = 0; k < K; ++k) active[r * K + k] = static_cast<T>(__builtin_nan(""));
  }

 private:
  bool uses_tiles() const { return geometry_.centred; }

  // Own class by direct differences over its M centres.
  void start_row(int64_t i, const T* f, RowAtHand& row) {
    const int64_t y = p_.target_at(i);
    row = {y, y != p_.ignore_index, true, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, false};
    if (!row.counted) return;
    double best = squared_distance(f, geometry_.prototypes.row(y * p_.M), p_.D);
    row.finite = geometry_.finite_prototypes &&
                 (geometry_.feature_norm[i] < __builtin_inf() || all_finite(f, p_.D));
    for (int64_t m = 1; m < p_.M; ++m) {
      const double q = squared_distance(f, geometry_.prototypes.row(y * p_.M + m), p_.D);
      if (q < best) {
        best = q;
        row.own_centre = m;
      }
    }
    row.ratio = best / p_.sigma;
    row.s = affinity(best, p_.sigma);
  }

  // Classes of the prototypes [k, k + n): products [n] = f w in, active affinities [n] out (may be
  // the same memory).
  template <class G>
  void add_classes(RowAtHand& row, const T* f, double f_norm, const G* w_norm, int64_t k, int64_t n,
                   G* products, T* active) {
    if (!row.counted || !row.finite) {
      for (int64_t i = 0; i < n; ++i)
        active[i] = row.counted ? static_cast<T>(__builtin_nan("")) : T{0};
      return;
    }
    const G norm = static_cast<G>(f_norm);
    for (int64_t i = 0; i < n; ++i) {
      const G q = (norm + w_norm[i]) - G{2} * products[i];
      products[i] = q < G{0} ? G{0} : q;
    }
    const double error = geometry_.product_error(kProductError<G>, f_norm);
    const int64_t first_class = k / p_.M, classes = n / p_.M;
    const double far_before = row.affinity_sum;
    row.largest = 0.0;
    if (p_.M == 1) {
      hinge_classes(
          row, f, first_class, classes, error, products, [k](int64_t c) { return k + c; }, active);
      mark_near(row, norm, w_norm, n, far_before, active);
      return;
    }
    double* q = compact_q_.get();
    for (int64_t c = 0; c < classes; ++c)
      q[c] = nearest_centre(f, k + c * p_.M, error, products + c * p_.M, c);
    hinge_classes(
        row, f, first_class, classes, error, q, [&](int64_t c) { return k + nearest_[c]; },
        compact_.get());
    for (int64_t i = 0; i < n; ++i) active[i] = T{0};
    for (int64_t c = 0; c < classes; ++c) active[nearest_[c]] = compact_[c];
    mark_near(row, norm, w_norm, n, far_before, active);
  }

  // Gives the near pairs among n active affinities their minus, and leaves them out of
  // affinity_sum, which was far_before without these n.
  template <class G>
  void mark_near(RowAtHand& row, G f_norm, const G* w_norm, int64_t n, double far_before,
                 T* active) {
    const double rate = -kNearShare / p_.sigma;
    // q < (|f|^2 + |w|^2) / 64 where a > exp(-(|f|^2 + |w|^2) / (64 sigma)). Where sigma is so
    // large that both are 1, no pair stands out of its row's sum.
    if (row.largest <= affinity(kNearShare * (f_norm + geometry_.largest_product_norm()), p_.sigma))
      return;
    row.affinity_sum = far_before;
    for (int64_t k = 0; k < n; k += kLanes<G>) {
      const int64_t lanes = n - k < kLanes<G> ? n - k : kLanes<G>;
      const Vec<G> norms = f_norm +
                           (lanes < kLanes<G> ? load_first(w_norm + k, lanes) : load(w_norm + k)),
                   least = exp_nonpositive<G>(norms * static_cast<G>(rate));
      for (int64_t l = 0; l < lanes; ++l) {
        T& a = active[k + l];
        if (a > T{0} && static_cast<G>(a) > least[l]) {
          a = -a;
          row.near = true;
        } else {
          row.affinity_sum += a;
        }
      }
    }
  }

  // Nearest of the M centres from prototype k on; those within the error of the smallest are
  // compared directly.
  template <class G>
  double nearest_centre(const T* f, int64_t k, double error, const G* q, int64_t c) {
    double best = q[0];
    for (int64_t m = 1; m < p_.M; ++m) best = q[m] < best ? q[m] : best;
    const double band = 2.0 * error * p_.sigma;
    int64_t close = 0, nearest = 0;
    for (int64_t m = p_.M - 1; m >= 0; --m)
      if (!(q[m] > best + band)) {
        ++close;
        nearest = m;
      }
    if (close > 1) {
      double smallest = __builtin_inf();
      for (int64_t m = p_.M - 1; m >= 0; --m) {
        if (q[m] > best + band) continue;
        const double exact = squared_distance(f, geometry_.prototypes.row(k + m), p_.D);
        if (exact <= smallest) {  // ties go to the lowest index
          smallest = exact;
          nearest = m;
        }
      }
      best = smallest;
    }
    nearest_[c] = c * p_.M + nearest;
    return best;
  }

  // h_ij and A_ij for all classes but the own one.
  template <class G, class Prototype>
  void hinge_classes(RowAtHand& row, const T* f, int64_t first_class, int64_t classes, double error,
                     const G* q, const Prototype& prototype, T* active) {
    const int64_t own = row.y - first_class;
    // Nothing of the product is trusted where even passing its error on would show.
    const bool direct = error > kToleratedError<T>;
    if (own < 0 || own >= classes) {
      hinge_range(row, f, 0, classes, error, direct, q, prototype, active);
      return;
    }
    hinge_range(row, f, 0, own, error, direct, q, prototype, active);
    active[own] = T{0};
    hinge_range(row, f, own + 1, classes, error, direct, q, prototype, active);
  }

  // Classes [begin, end), none of them the own one.
  template <class G, class Prototype>
  void hinge_range(RowAtHand& row, const T* f, int64_t begin, int64_t end, double error,
                   bool direct, const G* q, const Prototype& prototype, T* active) {
    constexpr int64_t kBlock =
        64 * kLanes<G>;  // summed in G's lanes before it is added up in double
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t last = block + kBlock < end ? block + kBlock : end;
      HingeSums<G> sums;
      const HingeConstants<G> constants(p_, row.s, error, direct);
      int64_t c = block;
      for (; c + kLanes<G> <= last; c += kLanes<G>)
        write(active + c, constants.hinges(load(q + c), IntVec<G>{} - 1, sums), kLanes<G>);
      if (c < last) {
        IntVec<G> inside{};
        for (int64_t l = 0; l < last - c; ++l) inside[l] = -1;
        write(active + c, constants.hinges(load_first(q + c, last - c), inside, sums), last - c);
      }
      row.hinge_sum += sum_lanes<G>(sums.hinge);
      row.affinity_sum += sum_lanes<G>(sums.affinity);
      for (int l = 0; l < kLanes<G>; ++l)
        row.largest = sums.largest[l] > row.largest ? sums.largest[l] : row.largest;
      bool doubtful = false;
      for (int l = 0; l < kLanes<G>; ++l) {
        row.active -= static_cast<double>(sums.active[l]);
        doubtful |= sums.doubtful[l] != 0;
      }
      if (doubtful)
        for (c = block; c < last; ++c)
          if (active[c] == T{-1}) active[c] = settle(row, f, prototype(c));
    }
  }

  // An entry in doubt, by direct differences in double.
  T settle(RowAtHand& row, const T* f, int64_t k) {
    const double a = affinity(squared_distance(f, geometry_.prototypes.row(k), p_.D), p_.sigma);
    const double h = p_.margin - row.s + a;
    if (h != h) row.finite = false;
    if (!(h > 0.0)) return T{0};
    row.hinge_sum += h;
    row.affinity_sum += a;
    row.largest = a > row.largest ? a : row.largest;
    row.active += 1.0;
    return static_cast<T>(a);
  }

  static void write(T* out, Vec<T> value, int64_t lanes) {
    if (lanes == kLanes<T>)
      store(out, value);
    else
      store_first(out, value, lanes);
  }
  template <class G>
  static void write(float* out, G value, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) out[l] = static_cast<float>(value[l]);
  }

  const Problem& p_;
  const Runtime& runtime_;
  const ManyGeometry<T>& geometry_;
  FeatureRows<T> features_;
  int64_t tile_ = 0;
  Scratch<double> centred_features_, centred_prototypes_, products_;
  Scratch<int64_t> nearest_;  // [C] within the tile
  Scratch<T> compact_;        // [C] active affinities by class
  Scratch<double> compact_q_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
