// The squared distances of all rows to all prototypes, q [B, K], and their gradients, by direct
// differences:
//   sum_ij g_ij dq_ij/df_i = sum_j 2 g_ij (f_i - w_j),   sum_ij g_ij dq_ij/dw_j = sum_i 2 g_ij (w_j
//   - f_i).
#pragma once

#include "distance.h"
#include "few_backward.h"

namespace cfal {
namespace CFAL_ISA {

template <class T, bool kPanels>
void all_distances_to(const Problem& p, PrototypeView<T, kPanels> w, const Runtime& runtime,
                      T* out) {
  // Prototypes that stay in a thread's part of the L2 cache while a block of rows passes.
  constexpr int64_t kRows = 32, kBytes = 128 * 1024;
  const int64_t K = p.K(), D = p.D, fit = kBytes / static_cast<int64_t>(sizeof(T)) / D,
                group = fit < 12 ? 12 : (fit < K ? fit : K);
  const int64_t blocks = (p.B + kRows - 1) / kRows;
  parallel(runtime, blocks, kRows * K * (D + 8), [&](int64_t begin, int64_t end) {
    FeatureRows<T> features(p, kRows, D);
    Scratch<double> q(kRows * K);
    const auto view = DistanceView::matrix(q.get(), K);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kRows, rows = p.B - first < kRows ? p.B - first : kRows;
      const T* const f = features.rows(first, rows, 0, D);
      for (int64_t k = 0; k < K; k += group)
        squared_distances(f, features.ld(), rows, w.from(k), K - k < group ? K - k : group, D,
                          view.from(0, k));
      for (int64_t r = 0; r < rows; ++r)
        repair_distances(f + r * features.ld(), w, K, D, view.from(r, 0));
      for (int64_t i = 0; i < rows * K; ++i) out[first * K + i] = static_cast<T>(q[i]);
    }
  });
}

template <class T>
void all_distances(const Problem& p, const Runtime& runtime, T* out) {
  constexpr int64_t kLeastRows = 8;  // that are worth a copy of the prototypes
  if (p.B >= kLeastRows) {
    const PrototypePanels<T> panels(p);
    return all_distances_to(p, panels.rows(), runtime, out);
  }
  const PrototypeRows<T> rows(p);
  all_distances_to(p, MatrixRows<T>{rows.get(), p.D}, runtime, out);
}

// g [B, K] of any stride; null: not asked for.
template <class T>
void all_distances_backward(const Problem& p, const MatrixView& g, const Runtime& runtime,
                            void* grad_features, void* grad_prototypes) {
  // The gradients of few prototypes are -sum_j c_ij (f_i - w_j) and sum_i c_ij (f_i - w_j), of rows
  // that are not ignored.
  const int64_t first_class = 0;
  Problem all = p;
  all.target = &first_class;
  all.target_is_int32 = false;
  all.target_stride = 0;
  all.ignore_index = -1;
  all.diversity_weight = 0.0;
  const FewLayout layout{p.B, p.K()};
  Scratch<T> c(p.B * layout.stride());
  for (int64_t i = 0; i < p.B; ++i) {
    T* const row = c.get() + i * layout.stride();
    read_strided(g.data, g.dtype, i * g.row_stride, g.col_stride, p.K(), row);
    for (int64_t k = 0; k < p.K(); ++k) row[k] *= T{-2};
    row[p.K()] = T{0};
  }
  const double one = 1.0;
  few_backward<T>(all, {&one, DType::kFloat64, 0}, c.get(), PrototypePanels<T>(p), runtime,
                  grad_features, grad_prototypes);
}

}  // namespace CFAL_ISA
}  // namespace cfal
