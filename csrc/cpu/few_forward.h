// Few prototypes, forward: all distances of a block of rows stay in cache; one pass writes the loss
// and the coefficients
//   c_ij = (2 / sigma) a_ij dl_i/da_ij,   so that   dl_i/df_i = -sum_j c_ij (f_i - w_j), dl_i/dw_j
//   = c_ij (f_i - w_j).
#pragma once

#include "../core/formulas.h"
#include "../core/saved.h"
#include "diversity.h"
#include "pack.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kForwardRows = 32;  // rows of one task

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

// One row: distances q [K] in, loss out, coefficients c [K + 1] (the last one dl_i/dR) unless c is
// null. q is overwritten.
template <class T>
double few_row(const Problem& p, double R, double scale, int64_t y, double* q, int64_t* nearest,
               T* c) {
  const int64_t C = p.C, M = p.M;
  bool finite = true;
  if (M > 1) {
    for (int64_t j = 0; j < C; ++j) {
      int64_t best = j * M;
      for (int64_t k = best + 1; k < (j + 1) * M; ++k) {
        finite = finite && q[k] == q[k];
        if (q[k] < q[best]) best = k;  // ties keep the lowest index
      }
      finite = finite && q[best] == q[best];
      q[j] = q[best];  // best >= j: entries still to be read are not overwritten
      nearest[j] = best;
    }
  } else {
    for (int64_t j = 0; j < C; ++j) finite = finite && q[j] == q[j];
  }
  const double ratio = q[y] / p.sigma;
  affinities(q, C, -1.0 / p.sigma);
  const double s = q[y];
  double hinge_sum = 0.0, active = 0.0;
  for (int64_t j = 0; j < C; ++j) {
    const double h = p.margin + q[j] - s;
    if (j != y && h > 0.0) {
      hinge_sum += h;
      active += 1.0;
    }
  }
  if (!finite) hinge_sum = __builtin_nan("");  // comparisons above drop NaN silently
  const Row row{ratio,
                s,
                hinge_sum,
                active,
                p.has_diversity() ? p.diversity_weight * R : 0.0,
                p.class_weight_at(y)};
  const RowTerms terms = row_terms(row, p.gamma, p.detach_focal);
  if (c != nullptr) {
    const double poison = finite ? 0.0 : hinge_sum;
    const double u = 2.0 / p.sigma * scale;
    if (M > 1)
      for (int64_t k = 0; k < p.K(); ++k) c[k] = static_cast<T>(poison);
    for (int64_t j = 0; j < C; ++j) {
      const double slope =
          j == y ? terms.own_slope : (p.margin + q[j] - s > 0.0 ? terms.hinge_slope : 0.0);
      // a == 0 first: 0 times an overflowed slope stays 0.
      const double value = (q[j] == 0.0 ? 0.0 : u * q[j] * slope) + poison;
      c[M > 1 ? nearest[j] : j] = static_cast<T>(value);
    }
    c[p.K()] =
        static_cast<T>(p.has_diversity() ? p.diversity_weight * terms.hinge_slope * scale : 0.0);
  }
  return terms.loss;
}

template <class T>
void few_forward(const Problem& p, int64_t counted_rows, const Runtime& runtime, T* loss,
                 T* saved) {
  const int64_t K = p.K(), D = p.D;
  const FewLayout layout{p.B, K};
  const PrototypeRows<T> prototypes(p);
  double R = 0.0;
  if (p.has_diversity()) {
    const PrototypeRows<double> exact(p);
    Scratch<double> pairs(K * K);
    const PairStatistics statistics = pair_statistics(runtime, exact.get(), K, D, pairs.get());
    R = statistics.variance;
    if (saved != nullptr)
      pair_coefficients(pairs.get(), K, statistics.mean, saved + layout.pairs_offset(),
                        layout.stride());
  }
  const double scale = row_scale(p, counted_rows);
  Scratch<double> row_loss(p.B);
  const int64_t tasks = (p.B + kForwardRows - 1) / kForwardRows;
  parallel(runtime, tasks, kForwardRows * K * (D + 32), [&](int64_t begin, int64_t end) {
    FeatureRows<T> features(p, kForwardRows, D);
    Scratch<double> q(kForwardRows * K);
    Scratch<int64_t> nearest(p.C);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kForwardRows;
      const int64_t rows = p.B - first < kForwardRows ? p.B - first : kForwardRows;
      const T* f = features.rows(first, rows, 0, D);
      squared_distances(f, features.ld(), rows, prototypes.get(), D, K, D, q.get(), K);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = first + r, y = p.target_at(i);
        T* c = saved ? saved + i * layout.stride() : nullptr;
        if (y == p.ignore_index) {
          row_loss[i] = 0.0;
          if (c != nullptr)
            for (int64_t k = 0; k <= K; ++k) c[k] = T{0};
          continue;
        }
        repair_distances(f + r * features.ld(), prototypes.get(), D, K, D, q.get() + r * K);
        row_loss[i] = few_row(p, R, scale, y, q.get() + r * K, nearest.get(), c);
      }
    }
  });
  write_loss(p, counted_rows, row_loss.get(), loss);
}

}  // namespace CFAL_ISA
}  // namespace cfal
