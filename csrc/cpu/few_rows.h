// Few prototypes, rows: distances, loss and the coefficients
//   c_ij = (2 / sigma) a_ij dl_i/da_ij,   so that   dl_i/df_i = -sum_j c_ij (f_i - w_j), dl_i/dw_j
//   = c_ij (f_i - w_j),
// of blocks of rows. A vector holds one quantity of as many rows: everything of a block is kept
// with its rows side by side.
#pragma once

#include "../core/saved.h"
#include "diversity.h"
#include "rows.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kRowsAtOnce = 32;  // that a block has at most
static_assert(kRowsAtOnce % kLanes<double> == 0);

// What a call's rows share, and where their losses and coefficients go.
template <class T>
class FewRows {
  using V = Vec<double>;
  using I = IntVec<double>;

 public:
  // saved: null where no gradient will be asked for.
  FewRows(const Problem& p, int64_t counted_rows, const PrototypePanels<T>& prototypes, T* loss,
          T* saved)
      : p_(p),
        counted_rows_(counted_rows),
        layout_{p.B, p.K()},
        prototypes_(prototypes),
        loss_(loss),
        saved_(saved) {}

  // Before any row: the diversity term, and the part of `saved` that belongs to it.
  void begin(const Runtime& runtime) {
    const int64_t K = p_.K();
    double R = 0.0;
    if (p_.has_diversity()) {
      Scratch<double> pairs(K * K);
      const PairStatistics statistics = pair_statistics_by_columns(runtime, p_, pairs.get());
      R = statistics.variance;
      if (saved_ != nullptr)
        pair_coefficients(pairs.get(), K, statistics.mean, saved_ + layout_.pairs_offset(),
                          layout_.stride());
    }
    if (saved_ != nullptr) {  // no element of it is left as it was found
      T* const pairs = saved_ + layout_.pairs_offset();
      for (int64_t j = 0; j < K; ++j)
        for (int64_t k = p_.has_diversity() ? K : 0; k <= K; ++k)
          pairs[j * layout_.stride() + k] = T{0};
    }
    const double scale = row_scale(p_, counted_rows_);
    shared_ = {p_.has_diversity() ? p_.diversity_weight * R : 0.0, scale, 2.0 / p_.sigma * scale};
    row_loss_.resize(p_.B);
  }

  // What a thread needs for its blocks.
  struct Worker {
    explicit Worker(const Problem& p)
        : a(p.K() * kRowsAtOnce),
          nearest(p.M > 1 ? p.C * kRowsAtOnce : 0),
          c((p.K() + 1) * kRowsAtOnce) {}
    Scratch<double> a;         // [K, kRowsAtOnce]: distances, then [C, kRowsAtOnce]: affinities
    Scratch<int64_t> nearest;  // [C, kRowsAtOnce]: a class's nearest prototype
    Scratch<T> c;              // [K + 1, kRowsAtOnce]: c_ij, dl_i/dR
    double y[kRowsAtOnce];     // the class, -1 of an ignored row
    double s[kRowsAtOnce], complement[kRowsAtOnce];      // the own affinity, 1 - s
    double hinge_sum[kRowsAtOnce], active[kRowsAtOnce];  // over j != y
    double poison[kRowsAtOnce];                          // NaN, or 0 of a finite row
    double hinge_slope[kRowsAtOnce], own[kRowsAtOnce];   // c_ij / a_ij of active hinges, c_iy
  };

  // Rows [first, first + rows), at most kRowsAtOnce; f [rows, D] at stride ldf.
  void run(int64_t first, int64_t rows, const T* f, int64_t ldf, Worker& at) {
    const DistanceView q{at.a.get(), 1, kRowsAtOnce};
    const int64_t padded = (rows + kLanes<double> - 1) / kLanes<double> * kLanes<double>;
    squared_distances(f, ldf, rows, prototypes_.rows(), p_.K(), p_.D, q);
    for (int64_t r = 0; r < padded; ++r) {
      const int64_t y = r < rows ? p_.target_at(first + r) : p_.ignore_index;
      at.y[r] = y == p_.ignore_index ? -1.0 : static_cast<double>(y);
      for (int64_t k = 0; k < p_.K() && r >= rows; ++k) q.at(r, k) = 0.0;
    }
    if (overflowed(padded, at.a.get()))
      for (int64_t r = 0; r < rows; ++r)
        if (at.y[r] >= 0.0)
          repair_distances(f + r * ldf, prototypes_.rows(), p_.K(), p_.D, q.from(r, 0));
    for (int64_t r = 0; r < padded; r += kLanes<double>) form_hinges(r, at);
    for (int64_t r = 0; r < padded; ++r) {
      const double loss = finish_row(r, at);
      if (r < rows) row_loss_[first + r] = loss;
    }
    if (saved_ == nullptr) return;
    for (int64_t r = 0; r < padded; r += kLanes<double>) form_coefficients(r, at);
    for (int64_t r = 0; r < rows; ++r) {
      T* const c = saved_ + (first + r) * layout_.stride();
      for (int64_t k = 0; k <= p_.K(); ++k) c[k] = at.c[k * kRowsAtOnce + r];
    }
  }

  // After the last row.
  void finish() { write_loss(p_, counted_rows_, row_loss_.get(), loss_); }

 private:
  // Whether any of the distances q [K, kRowsAtOnce] is NaN or infinite.
  bool overflowed(int64_t rows, const double* q) const {
    auto all = V{} == V{};
    for (int64_t k = 0; k < p_.K(); ++k)
      for (int64_t r = 0; r < rows; r += kLanes<double>)
        all &= load(q + k * kRowsAtOnce + r) < V{} + __builtin_inf();
    bool finite = true;
    for (int l = 0; l < kLanes<double>; ++l) finite &= all[l] != 0;
    return !finite;
  }

  // Rows r on: affinities over distances, and what the loss needs of them.
  void form_hinges(int64_t r, Worker& at) const {
    double* const a = at.a.get() + r;
    const double factor = -1.0 / p_.sigma;
    const V y = load(at.y + r);
    auto finite = y == y;
    V q_own{}, s{};
    for (int64_t j = 0; j < p_.C; ++j) {
      V q = load(a + j * p_.M * kRowsAtOnce);
      finite &= q == q;
      if (p_.M > 1) q = nearest_centre(j, q, r, at, finite);
      const auto own = y == static_cast<double>(j);
      const V affinity = exp_nonpositive<double>(q * factor);
      store(a + j * kRowsAtOnce, affinity);  // j <= j M: nothing still to be read is overwritten
      q_own = own ? q : q_own;
      s = own ? affinity : s;
    }
    const V slack = p_.margin - s;
    V hinge_sum{}, active{};
    for (int64_t j = 0; j < p_.C; ++j) {
      const V h = slack + load(a + j * kRowsAtOnce);  // lambda + a_ij - s_i
      const auto counts = (h > 0.0) & (y != static_cast<double>(j));
      hinge_sum += counts ? h : V{};
      active += counts ? V{} + 1.0 : V{};
    }
    store(at.s + r, s);
    store(at.complement + r, -expm1_nonpositive<double>(-(q_own / p_.sigma)));
    store(at.hinge_sum + r, hinge_sum);
    store(at.active + r, active);
    store(at.poison + r, finite ? V{} : V{} + __builtin_nan(""));  // comparisons drop NaN silently
  }

  // The smallest distance of class j, of which q is that to its first centre; ties keep the lowest
  // index.
  template <class Mask>
  V nearest_centre(int64_t j, V q, int64_t r, Worker& at, Mask& finite) const {
    I nearest = I{} + j * p_.M;
    for (int64_t k = j * p_.M + 1; k < (j + 1) * p_.M; ++k) {
      const V other = load(at.a.get() + k * kRowsAtOnce + r);
      finite &= other == other;
      const auto closer = other < q;
      q = closer ? other : q;
      nearest = closer ? I{} + k : nearest;
    }
    store_integers(at.nearest.get() + j * kRowsAtOnce + r, nearest);
    return q;
  }

  static void store_integers(int64_t* p, I v) { __builtin_memcpy(p, &v, sizeof v); }

  // The loss of row r, and the slopes of its coefficients.
  double finish_row(int64_t r, Worker& at) const {
    T& diversity_slope = at.c[p_.K() * kRowsAtOnce + r];
    if (at.y[r] < 0.0) {
      at.hinge_slope[r] = at.own[r] = at.poison[r] = 0.0;
      diversity_slope = T{0};
      return 0.0;
    }
    const Row row{at.complement[r], at.hinge_sum[r] + at.poison[r], at.active[r], shared_.diversity,
                  p_.class_weight_at(static_cast<int64_t>(at.y[r]))};
    const RowTerms terms = row_terms(row, p_.gamma, p_.detach_focal);
    at.hinge_slope[r] = shared_.u * terms.hinge_slope;
    // s == 0 first: 0 times an overflowed slope stays 0.
    at.own[r] = at.s[r] == 0.0 ? 0.0 : shared_.u * terms.own_slope * at.s[r];
    diversity_slope = static_cast<T>(
        p_.has_diversity() ? p_.diversity_weight * terms.hinge_slope * shared_.scale : 0.0);
    return terms.loss;
  }

  // Rows r on: c_ij, with NaN for all of a row that is not finite.
  void form_coefficients(int64_t r, Worker& at) const {
    const V y = load(at.y + r), slack = p_.margin - load(at.s + r),
            slope = load(at.hinge_slope + r), own = load(at.own + r), poison = load(at.poison + r);
    for (int64_t k = 0; k < p_.K() && p_.M > 1; ++k)
      write(at.c.get() + k * kRowsAtOnce + r, poison);
    for (int64_t j = 0; j < p_.C; ++j) {
      const V a = load(at.a.get() + j * kRowsAtOnce + r);
      V value = slack + a > 0.0 ? slope * a : V{};
      value = (y == static_cast<double>(j) ? own : value) + poison;
      if (p_.M == 1) {
        write(at.c.get() + j * kRowsAtOnce + r, value);
      } else {
        for (int l = 0; l < kLanes<double>; ++l)
          at.c[at.nearest[j * kRowsAtOnce + r + l] * kRowsAtOnce + r + l] =
              static_cast<T>(value[l]);
      }
    }
  }

  static void write(T* out, V value) {
    for (int l = 0; l < kLanes<double>; ++l) out[l] = static_cast<T>(value[l]);
  }

  const Problem& p_;
  const int64_t counted_rows_;
  const FewLayout layout_;
  const PrototypePanels<T>& prototypes_;
  RowConstants shared_{};
  Scratch<double> row_loss_;
  T* const loss_;
  T* const saved_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
