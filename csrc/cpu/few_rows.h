// Few prototypes, row by row: distances, loss and the coefficients
//   c_ij = (2 / sigma) a_ij dl_i/da_ij,   so that   dl_i/df_i = -sum_j c_ij (f_i - w_j), dl_i/dw_j
//   = c_ij (f_i - w_j),
// of blocks of rows whose distances stay in cache.
#pragma once

#include "../core/formulas.h"
#include "../core/saved.h"
#include "diversity.h"
#include "pack.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kRowsAtOnce = 32;  // that a block has at most

// a[n] = exp(-q[n] / sigma), in place.
inline void affinities(double* q, int64_t n, double negative_inverse_sigma) {
  int64_t k = 0;
  for (; k + kLanes<double> <= n; k += kLanes<double>)
    store(q + k, exp_nonpositive<double>(load(q + k) * negative_inverse_sigma));
  if (k < n)
    store_first(q + k, exp_nonpositive<double>(load_first(q + k, n - k) * negative_inverse_sigma),
                n - k);
}

// Sum in an order that depends on the number of values alone.
inline double ordered_sum(const double* x, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// A row's factor for the reduction: 1 / N for "mean" (plain mean over the counted rows), else 1.
inline double row_scale(const Problem& p, int64_t counted_rows) {
  return p.reduction == Reduction::kMean ? 1.0 / static_cast<double>(counted_rows) : 1.0;
}

// The reduced loss: sum of per-row losses in row order, NaN for the mean of nothing as in torch's
// cross_entropy.
template <class T>
void write_loss(const Problem& p, int64_t counted_rows, const double* row_loss, T* loss) {
  if (p.reduction == Reduction::kNone) {
    for (int64_t i = 0; i < p.B; ++i) loss[i] = static_cast<T>(row_loss[i]);
  } else {
    const double sum = ordered_sum(row_loss, p.B);
    loss[0] = static_cast<T>(
        p.reduction == Reduction::kMean ? sum / static_cast<double>(counted_rows) : sum);
  }
}

// Row [K] of distances: the smallest of each class moves to q[0 .. C), its prototype to nearest.
// False if any is NaN.
inline bool reduce_centres(int64_t C, int64_t M, double* q, int64_t* nearest) {
  bool finite = true;
  for (int64_t j = 0; j < C; ++j) {
    int64_t best = j * M;
    for (int64_t k = best; k < (j + 1) * M; ++k) {
      finite &= q[k] == q[k];
      if (q[k] < q[best]) best = k;  // ties keep the lowest index
    }
    q[j] = q[best];  // best >= j: nothing still to be read is overwritten
    nearest[j] = best;
  }
  return finite;
}

// What every row of a call shares.
struct RowConstants {
  double diversity;  // rho R
  double scale;      // 1 / N for the mean
  double u;          // 2 / sigma * scale
};

// One row from its affinities a [C]: returns the loss; coefficients go to c [K + 1] (the last one
// dl_i/dR) unless c is null.
template <class T>
double few_row(const Problem& p, const RowConstants& shared, int64_t y, double ratio, bool finite,
               const double* a, const int64_t* nearest, T* c) {
  const int64_t C = p.C, K = p.K();
  const double s = a[y], slack = p.margin - s;
  double hinge_sum = 0.0, active = 0.0;
  for (int64_t j = 0; j < C; ++j) {
    const double h = slack + a[j];  // lambda + a_ij - s_i
    const bool counts = (h > 0.0) & (j != y);
    hinge_sum += counts ? h : 0.0;
    active += counts ? 1.0 : 0.0;
  }
  const double poison = finite ? 0.0 : __builtin_nan("");  // comparisons drop NaN silently
  const Row row{ratio, s, hinge_sum + poison, active, shared.diversity, p.class_weight_at(y)};
  const RowTerms terms = row_terms(row, p.gamma, p.detach_focal);
  if (c != nullptr) {
    const double hinge_slope = shared.u * terms.hinge_slope, own_slope = shared.u * terms.own_slope;
    if (p.M > 1)
      for (int64_t k = 0; k < K; ++k) c[k] = static_cast<T>(poison);
    for (int64_t j = 0; j < C; ++j) {
      const double value = slack + a[j] > 0.0 ? hinge_slope * a[j] : 0.0;
      c[p.M > 1 ? nearest[j] : j] = static_cast<T>(value + poison);
    }
    // s == 0 first: 0 times an overflowed slope stays 0.
    c[p.M > 1 ? nearest[y] : y] = static_cast<T>((s == 0.0 ? 0.0 : own_slope * s) + poison);
    c[K] = static_cast<T>(p.has_diversity() ? p.diversity_weight * terms.hinge_slope * shared.scale
                                            : 0.0);
  }
  return terms.loss;
}

// What a call's rows share, and where their losses and coefficients go.
template <class T>
class FewRows {
 public:
  // saved: null where no gradient will be asked for.
  FewRows(const Problem& p, int64_t counted_rows, const PaddedPrototypes<T>& prototypes, T* loss,
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
        : q(kRowsAtOnce * p.K()), nearest(p.M > 1 ? kRowsAtOnce * p.C : 0) {}
    Scratch<double> q;
    Scratch<int64_t> nearest;
  };

  // Rows [first, first + rows), at most kRowsAtOnce; f [rows, D] at stride ldf.
  void run(int64_t first, int64_t rows, const T* f, int64_t ldf, Worker& worker) {
    const int64_t C = p_.C, K = p_.K(), D = p_.D;
    const T* const w = prototypes_.get();
    const int64_t ldw = prototypes_.ld();
    double* const q = worker.q.get();
    int64_t* const nearest = worker.nearest.get();
    squared_distances(f, ldf, rows, w, ldw, K, D, q, K);
    double ratio[kRowsAtOnce] = {};
    bool finite[kRowsAtOnce] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = p_.target_at(first + r);
      if (y == p_.ignore_index) continue;
      repair_distances(f + r * ldf, w, ldw, K, D, q + r * K);
      finite[r] = true;
      if (p_.M > 1)
        finite[r] = reduce_centres(C, p_.M, q + r * K, nearest + r * C);
      else
        for (int64_t j = 0; j < C; ++j) finite[r] &= q[r * K + j] == q[r * K + j];
      ratio[r] = q[r * K + y] / p_.sigma;
    }
    if (p_.M == 1)
      affinities(q, rows * K, -1.0 / p_.sigma);
    else
      for (int64_t r = 0; r < rows; ++r) affinities(q + r * K, C, -1.0 / p_.sigma);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r, y = p_.target_at(i);
      T* c = saved_ ? saved_ + i * layout_.stride() : nullptr;
      if (y != p_.ignore_index) {
        row_loss_[i] = few_row(p_, shared_, y, ratio[r], finite[r], q + r * K, nearest + r * C, c);
        continue;
      }
      row_loss_[i] = 0.0;
      if (c != nullptr)
        for (int64_t k = 0; k <= K; ++k) c[k] = T{0};
    }
  }

  // After the last row.
  void finish() { write_loss(p_, counted_rows_, row_loss_.get(), loss_); }

 private:
  const Problem& p_;
  const int64_t counted_rows_;
  const FewLayout layout_;
  const PaddedPrototypes<T>& prototypes_;
  RowConstants shared_{};
  Scratch<double> row_loss_;
  T* const loss_;
  T* const saved_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
