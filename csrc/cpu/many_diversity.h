// The diversity term of many prototypes.
//
// K <= D: all pairs by direct differences (diversity.h), their coefficients E applied as a matrix
// product. K > D: the closed form on prototypes about their mean, with n_j = |w_j|^2, S = sum n, M
// = W^T W [D, D]:
//   sum over pairs of D_jk   = K S = P mu
//   sum over pairs of D_jk^2 = K sum n^2 + S^2 + 2 |M|_F^2.
// Their difference cancels where the prototypes spread evenly, up to all of it for the D + 1
// corners of a simplex. In the deviations e_j = n_j - S / K and N = M - (S / D) I it is a sum of
// terms that are never negative,
//   P R     = K sum e^2 + 2 |N|_F^2 + 2 t S,   t = S (1 / D - 1 / (K - 1)) >= 0,
//   dR/dw_j = (4 / P) [(K e_j + 2 t) w_j - sum_k e_k w_k + 2 N w_j].
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

  // R and mu of the pairs; matrix (E) is written unless null.
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

  // Tasks of the closed form, for a parallel region; none by pairs.
  int64_t moment_tasks() const { return layout_.by_pairs() ? 0 : (D_ + kStrip - 1) / kStrip; }

  // What rows of N add to |N|_F^2, the most in task 0; matrix (N) is written unless null.
  double moment_task(int64_t task, T* matrix) const {
    const int64_t first = task * kStrip, n = D_ - first < kStrip ? D_ - first : kStrip,
                  ld = D_ - first;
    // Not in place: a product may round by where its result lies, and the loss must not depend on
    // whether the matrix is kept.
    Scratch<T> strip(n * ld), centred(raw() ? 0 : centred_rows() * D_);
    T* const rows = strip.get();
    moment_rows(first, n, first, centred.get(), rows);
    if (matrix != nullptr) store_symmetric(rows, first, n, matrix);
    // N is symmetric: what lies right of the diagonal block counts twice.
    double square = 0.0, right = 0.0;
    for (int64_t r = 0; r < n; ++r) {
      square += squared_norm(rows + r * ld, n);
      right += squared_norm(rows + r * ld + n, D_ - first - n);
    }
    return square + 2.0 * right;
  }

  // R and mu of the closed form, from all tasks.
  PairStatistics moments(const double* tasks) const {
    const double K = static_cast<double>(K_), P = pair_count(), S = norm_sum();
    double squares = 0.0, frobenius = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      const double e = geometry_.centred_norm[k] - S / K;
      squares += e * e;
    }
    for (int64_t task = 0; task < moment_tasks(); ++task) frobenius += tasks[task];
    return {K * S / P, (K * squares + 2.0 * frobenius + 2.0 * excess(S) * S) / P};
  }

  // The gradient, slope dR/dw, of mean and matrix as the forward left them; matrix null: it was not
  // kept.
  class Gradient {
   public:
    Gradient(const ManyDiversity& all, double slope, double mean, const T* matrix)
        : all_(all), slope_(slope), mean_(mean), matrix_(matrix) {
      if (all.layout_.by_pairs()) return;
      weighted_.resize(all.D_);
      all.weighted_sum(weighted_.get());
      if (matrix == nullptr) return;
      shift_.resize(all.D_);
      all.form_shift(weighted_.get(), matrix, 0, all.D_, shift_.get());
    }

    // Whether rows of it can be made apart from each other, inside a parallel region.
    bool has_rows() const { return all_.layout_.by_pairs() || matrix_ != nullptr; }

    // grad [n, D] += prototypes [first, first + n), at most kRows of them.
    void add_rows(int64_t first, int64_t n, T* grad) const {
      if (all_.layout_.by_pairs())
        all_.add_pairs(slope_, mean_, matrix_, first, n, grad);
      else
        all_.add_moments(slope_, matrix_, first, n, 0, all_.D_, shift_.get(), grad);
    }

    // grad [K, D] += all of it, where it has no rows.
    void add(T* grad) const { all_.add_moments_by_columns(slope_, weighted_.get(), grad); }

   private:
    const ManyDiversity& all_;
    const double slope_, mean_;
    const T* const matrix_;
    Scratch<double> weighted_;  // [D] sum_k e_k w_k
    Scratch<T> shift_;          // [D], form_shift
  };

  static constexpr int64_t kRows = 256;  // prototypes of one task

 private:
  static constexpr int64_t kStrip = 64;  // rows of N of one task: few, as the diagonal is in twice
  static constexpr int64_t kWideStrip = 128;  // at a time where N was not kept

  // Products of the prototypes as they are, the mean taken out of the result: at most one bit is
  // lost where the mean holds less than half of the squared norms. Otherwise the prototypes are
  // centred first.
  bool raw() const {
    return !geometry_.centred && 2.0 * geometry_.centred_norm_sum >= geometry_.norm_sum;
  }

  // Prototypes that a thread centres at a time: about 1 MiB of float32, but enough for a product.
  int64_t centred_rows() const {
    const int64_t fit = (int64_t{1} << 18) / D_;
    return fit < kRows ? kRows : (fit < K_ ? fit : K_);
  }

  // Rows [first, first + n) of the gradient by pairs.
  void add_pairs(double slope, double mean, const T* matrix, int64_t first, int64_t n,
                 T* grad) const {
    const T* const w = geometry_.prototypes.get();
    Scratch<T> recomputed(matrix ? 0 : n * K_);
    const T* const E = matrix ? matrix + first * K_ : recomputed.get();
    if (matrix == nullptr) {
      Scratch<double> distances(n * K_);
      const MatrixRows<T> all{w, D_};
      const auto q = DistanceView::matrix(distances.get(), K_);
      squared_distances(w + first * D_, D_, n, all, K_, D_, q);
      for (int64_t j = 0; j < n; ++j) {
        repair_distances(w + (first + j) * D_, all, K_, D_, q.from(j, 0));
        for (int64_t k = 0; k < K_; ++k)
          recomputed[j * K_ + k] = static_cast<T>(pair_scale(K_) * (distances[j * K_ + k] - mean));
        recomputed[j * K_ + first + j] = T{0};
      }
    }
    if (geometry_.centred)
      add_pairs_directly(slope, E, first, n, grad);
    else
      add_pairs_by_product(slope, E, first, n, grad);
  }

  // sum_k E_jk (w_j - w_k) = (sum_k E_jk) w_j - E W
  void add_pairs_by_product(double slope, const T* E, int64_t first, int64_t n, T* grad) const {
    const T* const w = geometry_.prototypes.get();
    gemm(runtime_, false, false, n, D_, K_, -slope, E, K_, w, D_, 1.0, grad, D_);
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int64_t k = 0; k < K_; ++k) sum += E[j * K_ + k];
      T* const out = grad + j * D_;
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
      T* const out = grad + j * D_;
      for (int64_t d = 0; d < D_; ++d) out[d] = static_cast<T>(out[d] + sum[d]);
    }
  }

  double pair_count() const { return 0.5 * static_cast<double>(K_) * static_cast<double>(K_ - 1); }

  double norm_sum() const { return geometry_.centred_norm_sum; }

  // t = S (1 / D - 1 / (K - 1))
  double excess(double S) const {
    return S * (static_cast<double>(K_ - 1 - D_) / (static_cast<double>(D_) * (K_ - 1)));
  }

  // strip [n, D - first], N from its diagonal block on, into both triangles of matrix.
  void store_symmetric(const T* strip, int64_t first, int64_t n, T* matrix) const {
    const int64_t ld = D_ - first;
    for (int64_t r = 0; r < n; ++r)
      __builtin_memcpy(matrix + (first + r) * D_ + first, strip + r * ld,
                       static_cast<size_t>(ld) * sizeof(T));
    constexpr int64_t kPatch = 16;  // transposed in patches that stay in the L1 cache
    T patch[kPatch * kPatch];
    for (int64_t r0 = 0; r0 < n; r0 += kPatch)
      for (int64_t d0 = n; d0 < ld; d0 += kPatch) {
        const int64_t rows = n - r0 < kPatch ? n - r0 : kPatch,
                      columns = ld - d0 < kPatch ? ld - d0 : kPatch;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t d = 0; d < columns; ++d)
            patch[d * kPatch + r] = strip[(r0 + r) * ld + d0 + d];
        for (int64_t d = 0; d < columns; ++d)
          __builtin_memcpy(matrix + (first + d0 + d) * D_ + first + r0, patch + d * kPatch,
                           static_cast<size_t>(rows) * sizeof(T));
      }
  }

  // out [n, D - column] = N[first .. first + n, column..], column <= first; centred is scratch for
  // centred_rows() prototypes.
  void moment_rows(int64_t first, int64_t n, int64_t column, T* centred, T* out) const {
    const int64_t columns = D_ - column;
    if (raw()) {  // W^T W - K mean mean^T
      const T* const w = geometry_.prototypes.get();
      gemm(runtime_, true, false, n, columns, K_, 1.0, w + first, D_, w + column, D_, 0.0, out,
           columns);
      const T* const mean = geometry_.rounded_mean.get() + column;
      for (int64_t r = 0; r < n; ++r) {
        const T shift = static_cast<T>(static_cast<double>(K_) * geometry_.mean[first + r]);
        for (int64_t d = 0; d < columns; ++d) out[r * columns + d] -= shift * mean[d];
      }
    } else {
      for (int64_t k = 0; k < K_; k += centred_rows()) {
        const int64_t rows = K_ - k < centred_rows() ? K_ - k : centred_rows();
        geometry_.centre(geometry_.prototypes.row(k), D_, rows, centred);
        gemm(runtime_, true, false, n, columns, rows, 1.0, centred + first, D_, centred + column,
             D_, k > 0 ? 1.0 : 0.0, out, columns);
      }
    }
    for (int64_t r = 0; r < n; ++r) {
      T& diagonal = out[r * columns + first + r - column];
      diagonal = static_cast<T>(diagonal - norm_sum() / static_cast<double>(D_));
    }
  }

  // Rows [k, k + rows), columns [first, first + n) of the gradient by moments; N [n, D]: its rows
  // from `first` on. grad: from the first of the rows and columns on, at stride D.
  void add_moments(double slope, const T* N, int64_t k, int64_t rows, int64_t first, int64_t n,
                   const T* shift, T* grad) const {
    const double scale = slope * 4.0 / pair_count(), S = norm_sum();
    Scratch<T> centred(raw() ? 0 : rows * D_);
    const T* w = geometry_.prototypes.row(k);
    if (!raw()) {
      geometry_.centre(w, D_, rows, centred.get());
      w = centred.get();
    }
    gemm(runtime_, false, true, rows, n, D_, 2.0 * scale, w, D_, N, D_, 1.0, grad, D_);
    for (int64_t r = 0; r < rows; ++r)
      add_own_moment(scale, S, k + r, w + r * D_ + first, first, n, shift, grad + r * D_);
  }

  // The same for all of the gradient, a few rows of N at a time.
  void add_moments_by_columns(double slope, const double* weighted, T* grad) const {
    Scratch<T> strip(kWideStrip * D_), shift(kWideStrip);
    for (int64_t first = 0; first < D_; first += kWideStrip) {
      const int64_t n = D_ - first < kWideStrip ? D_ - first : kWideStrip;
      parallel_products(runtime_, 1, [&](TaskQueue& queue) {
        int64_t only;
        if (!queue.take(only)) return;
        Scratch<T> centred(raw() ? 0 : centred_rows() * D_);
        moment_rows(first, n, 0, centred.get(), strip.get());
      });
      form_shift(weighted, strip.get(), first, n, shift.get());
      parallel_products(runtime_, (K_ + kRows - 1) / kRows, [&](TaskQueue& queue) {
        for (int64_t task; queue.take(task);) {
          const int64_t k = task * kRows, rows = K_ - k < kRows ? K_ - k : kRows;
          add_moments(slope, strip.get(), k, rows, first, n, shift.get(), grad + k * D_ + first);
        }
      });
    }
  }

  // shift [n] = sum_k e_k w_k, and what raw products leave of the mean, N (w_j - mean) = N w_j - N
  // mean: one vector for all prototypes. N [n, D], as above.
  void form_shift(const double* weighted, const T* N, int64_t first, int64_t n, T* shift) const {
    for (int64_t e = 0; e < n; ++e) shift[e] = static_cast<T>(weighted[first + e]);
    if (raw())
      parallel_products(runtime_, 1, [&](TaskQueue& queue) {
        int64_t only;
        if (!queue.take(only)) return;
        gemm(runtime_, false, true, 1, n, D_, 2.0, geometry_.rounded_mean.get(), D_, N, D_, 1.0,
             shift, n);
      });
  }

  // out [n] += scale ((K e_k + 2 t) w_k - shift), about the mean; w: row k from column first on, as
  // the product had it.
  void add_own_moment(double scale, double S, int64_t k, const T* w, int64_t first, int64_t n,
                      const T* shift, T* out) const {
    const double K = static_cast<double>(K_);
    const T own =
                static_cast<T>(scale * (K * (geometry_.centred_norm[k] - S / K) + 2.0 * excess(S))),
            all = static_cast<T>(scale);
    const T* const mean = geometry_.rounded_mean.get() + first;
    if (raw())
      for (int64_t d = 0; d < n; ++d) out[d] += own * (w[d] - mean[d]) - all * shift[d];
    else
      for (int64_t d = 0; d < n; ++d) out[d] += own * w[d] - all * shift[d];
  }

  // out [D] = sum_k e_k w_k
  void weighted_sum(double* out) const {
    const double mean_norm = norm_sum() / static_cast<double>(K_);
    const auto add = [&](int64_t k, int64_t end, double* sum) {
      for (; k < end; ++k) {
        const double e = geometry_.centred_norm[k] - mean_norm;
        const T* const w = geometry_.prototypes.row(k);
        for (int64_t d = 0; d < D_; ++d) sum[d] += e * (w[d] - geometry_.mean[d]);
      }
    };
    sum_of_rows(runtime_, K_, D_, add, out);
  }

  const Runtime& runtime_;
  const ManyGeometry<T>& geometry_;
  const Problem& problem_;
  const int64_t K_, D_;
  const ManyLayout layout_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
