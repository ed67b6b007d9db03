// The diversity term of many prototypes.
//
// K <= D: all pairs by direct differences (diversity.h), their coefficients E applied as a matrix
// product. K > D: the closed form on prototypes about their mean, with n_j = |w_j|^2, S = sum n, M
// = W^T W [D, D]:
//   sum over pairs of D_jk   = K S
//   sum over pairs of D_jk^2 = K sum n^2 + S^2 + 2 |M|_F^2
//   dR/dw_j = (4 / P) [(K n_j + S - K mu) w_j - sum_k n_k w_k + 2 M w_j],   mu = K S / P.
// It is a difference of moments: the scalars are in double, and more than D + 1 points cannot be
// equidistant, so R / mu^2 stays well above the rounding.
#pragma once

#include "../core/saved.h"
#include "diversity.h"
#include "many_geometry.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
class ManyDiversity {
 public:
  ManyDiversity(const Problem& p, const Runtime& runtime, const ManyGeometry<T>& geometry)
      : runtime_(runtime),
        geometry_(geometry),
        problem_(p),
        K_(p.K()),
        D_(p.D),
        layout_{p.B, p.K(), p.D} {}

  // R and mu; matrix (E or M) is written unless null.
  PairStatistics forward(T* matrix) const {
    return layout_.by_pairs() ? pairs(matrix) : moments(matrix);
  }

  // grad [K, D] += slope dR/dw. matrix null: it was not kept.
  void add_gradient(double slope, double mean, const T* matrix, T* grad) const {
    if (layout_.by_pairs())
      add_pairs(slope, mean, matrix, grad);
    else
      add_moments(slope, matrix, grad);
  }

 private:
  static constexpr int64_t kBlock = 64;         // prototypes or columns of one task
  static constexpr int64_t kCentredRows = 256;  // prototypes centred at a time

  PairStatistics pairs(T* matrix) const {
    Scratch<double> kept(matrix ? K_ * K_ : 0);
    double* const distances = matrix ? kept.get() : nullptr;
    PairStatistics statistics;
    if (K_ <= kDoublePrototypes) {
      const PrototypeRows<double> exact(problem_);
      statistics = pair_statistics(runtime_, exact.get(), K_, D_, distances);
    } else {
      statistics = pair_statistics(runtime_, geometry_.prototypes.get(), K_, D_, distances);
    }
    if (matrix != nullptr) pair_coefficients(kept.get(), K_, statistics.mean, matrix, K_);
    return statistics;
  }

  void add_pairs(double slope, double mean, const T* matrix, T* grad) const {
    const T* const w = geometry_.prototypes.get();
    parallel_products(runtime_, (K_ + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
      Scratch<double> distances(matrix ? 0 : kBlock * K_);
      Scratch<T> recomputed(matrix ? 0 : kBlock * K_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * kBlock, n = K_ - first < kBlock ? K_ - first : kBlock;
        const T* E = matrix ? matrix + first * K_ : recomputed.get();
        if (matrix == nullptr) {
          squared_distances(w + first * D_, D_, n, w, D_, K_, D_, distances.get(), K_);
          for (int64_t j = 0; j < n; ++j) {
            repair_distances(w + (first + j) * D_, w, D_, K_, D_, distances.get() + j * K_);
            for (int64_t k = 0; k < K_; ++k)
              recomputed[j * K_ + k] =
                  static_cast<T>(pair_scale(K_) * (distances[j * K_ + k] - mean));
            recomputed[j * K_ + first + j] = T{0};
          }
        }
        if (geometry_.centred)
          add_pairs_directly(slope, E, first, n, grad);
        else
          add_pairs_by_product(slope, E, first, n, grad);
      }
    });
  }

  // sum_k E_jk (w_j - w_k) = (sum_k E_jk) w_j - E W
  void add_pairs_by_product(double slope, const T* E, int64_t first, int64_t n, T* grad) const {
    const T* const w = geometry_.prototypes.get();
    gemm(runtime_, false, false, n, D_, K_, -slope, E, K_, w, D_, 1.0, grad + first * D_, D_);
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int64_t k = 0; k < K_; ++k) sum += E[j * K_ + k];
      T* const out = grad + (first + j) * D_;
      for (int64_t d = 0; d < D_; ++d)
        out[d] += static_cast<T>(slope * sum) * w[(first + j) * D_ + d];
    }
  }

  void add_pairs_directly(double slope, const T* E, int64_t first, int64_t n, T* grad) const {
    const T* const w = geometry_.prototypes.get();
    Scratch<double> sum(D_);
    for (int64_t j = 0; j < n; ++j) {
      const T* const wj = w + (first + j) * D_;
      for (int64_t d = 0; d < D_; ++d) sum[d] = 0.0;
      for (int64_t k = 0; k < K_; ++k) {
        const double e = slope * E[j * K_ + k];
        for (int64_t d = 0; d < D_; ++d) sum[d] += e * (static_cast<double>(wj[d]) - w[k * D_ + d]);
      }
      T* const out = grad + (first + j) * D_;
      for (int64_t d = 0; d < D_; ++d) out[d] = static_cast<T>(out[d] + sum[d]);
    }
  }

  double pair_count() const { return 0.5 * static_cast<double>(K_) * static_cast<double>(K_ - 1); }

  double norm_sum() const {
    double S = 0.0;
    for (int64_t k = 0; k < K_; ++k) S += geometry_.centred_norm[k];
    return S;
  }

  PairStatistics moments(T* matrix) const {
    const double K = static_cast<double>(K_), P = pair_count(), S = norm_sum();
    double squares = 0.0;
    for (int64_t k = 0; k < K_; ++k)
      squares += geometry_.centred_norm[k] * geometry_.centred_norm[k];
    const int64_t tasks = (D_ + kBlock - 1) / kBlock;
    Scratch<double> partial(tasks);
    parallel_products(runtime_, tasks, [&](int64_t begin, int64_t end) {
      Scratch<T> columns(D_ * kBlock), centred(kCentredRows * D_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * kBlock, n = D_ - first < kBlock ? D_ - first : kBlock;
        moment_columns(first, n, first, centred.get(), columns.get());
        partial[task] = 0.0;
        for (int64_t d = first; d < D_; ++d)  // the part below the diagonal counts twice
          for (int64_t e = 0; e < n; ++e) {
            const double x = columns[(d - first) * n + e];
            if (d < first + n)
              partial[task] += x * x;
            else
              partial[task] += 2.0 * x * x;
          }
        if (matrix != nullptr)
          for (int64_t d = first; d < D_; ++d)
            for (int64_t e = 0; e < n; ++e)
              matrix[d * D_ + first + e] = matrix[(first + e) * D_ + d] =
                  columns[(d - first) * n + e];
      }
    });
    double frobenius = 0.0;
    for (int64_t task = 0; task < tasks; ++task) frobenius += partial[task];
    const double mean = K * S / P;
    return {mean, (K * squares + S * S + 2.0 * frobenius) / P - mean * mean};
  }

  // out [D - row, n] = M[row.., first .. first + n), summed over blocks of centred prototypes.
  void moment_columns(int64_t first, int64_t n, int64_t row, T* centred, T* out) const {
    for (int64_t k = 0; k < K_; k += kCentredRows) {
      const int64_t rows = K_ - k < kCentredRows ? K_ - k : kCentredRows;
      geometry_.centre(geometry_.prototypes.row(k), D_, rows, centred);
      gemm(runtime_, true, false, D_ - row, n, rows, 1.0, centred + row, D_, centred + first, D_,
           k > 0 ? 1.0 : 0.0, out, n);
    }
  }

  void add_moments(double slope, const T* matrix, T* grad) const {
    const double K = static_cast<double>(K_), scale = slope * 4.0 / pair_count(), S = norm_sum();
    const double mean_norm = S / K, mu = K * S / pair_count();
    // sum_k n_k w_k, with the mean of n taken out: the centred prototypes sum to 0.
    Scratch<double> weighted(D_);
    for (int64_t d = 0; d < D_; ++d) weighted[d] = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      const double n = geometry_.centred_norm[k] - mean_norm;
      for (int64_t d = 0; d < D_; ++d)
        weighted[d] += n * (geometry_.prototypes.row(k)[d] - geometry_.mean[d]);
    }
    Scratch<T> columns(matrix ? 0 : D_ * kBlock);
    const int64_t width = matrix ? D_ : kBlock;
    for (int64_t first = 0; first < D_; first += width) {
      const int64_t n = D_ - first < width ? D_ - first : width;
      if (matrix == nullptr)
        parallel_products(runtime_, 1, [&](int64_t, int64_t) {
          Scratch<T> centred(kCentredRows * D_);
          moment_columns(first, n, 0, centred.get(), columns.get());
        });
      const T* const M = matrix ? matrix : columns.get();
      parallel_products(runtime_, (K_ + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
        Scratch<T> centred(kBlock * D_);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t k = task * kBlock, rows = K_ - k < kBlock ? K_ - k : kBlock;
          geometry_.centre(geometry_.prototypes.row(k), D_, rows, centred.get());
          gemm(runtime_, false, false, rows, n, D_, 2.0 * scale, centred.get(), D_, M, n, 1.0,
               grad + k * D_ + first, D_);
          for (int64_t r = 0; r < rows; ++r) {
            const double own = K * geometry_.centred_norm[k + r] + S - K * mu;
            T* const out = grad + (k + r) * D_ + first;
            const T* const w = centred.get() + r * D_ + first;
            for (int64_t d = 0; d < n; ++d)
              out[d] = static_cast<T>(out[d] + scale * (own * w[d] - weighted[first + d]));
          }
        }
      });
    }
  }

  const Runtime& runtime_;
  const ManyGeometry<T>& geometry_;
  const Problem& problem_;
  const int64_t K_, D_;
  const ManyLayout layout_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
