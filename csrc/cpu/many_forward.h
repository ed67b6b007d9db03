// Many prototypes, forward: row blocks in parallel, their active affinities kept while the budget
// lasts.
#pragma once

#include "many_diversity.h"
#include "many_rows.h"

namespace cfal {
namespace CFAL_ISA {

inline RowConstants row_constants(const Problem& p, int64_t counted_rows, double R) {
  const double scale = row_scale(p, counted_rows);
  return {p.has_diversity() ? p.diversity_weight * R : 0.0, scale, 2.0 / p.sigma * scale};
}

template <class T>
void many_forward(const Problem& p, int64_t counted_rows, const Runtime& runtime, T* loss,
                  T* saved) {
  const int64_t K = p.K();
  const ManyLayout layout{p.B, K, p.D};
  ManyGeometry<T> geometry(p, runtime);
  geometry.measure_features(p, runtime);
  geometry.decide(p.B);
  double R = 0.0;
  if (p.has_diversity()) {
    T* const matrix =
        saved != nullptr && layout.keeps_matrix() ? saved + layout.matrix_offset() : nullptr;
    const PairStatistics statistics = ManyDiversity<T>(p, runtime, geometry).forward(matrix);
    R = statistics.variance;
    if (saved != nullptr) {
      saved[layout.scalars_offset()] = static_cast<T>(R);
      saved[layout.scalars_offset() + 1] = static_cast<T>(statistics.mean);
    }
  } else if (saved != nullptr) {  // no element of it is left as it was found
    for (int64_t i = layout.scalars_offset(); i < layout.numel(); ++i) saved[i] = T{0};
  }
  if (saved != nullptr) saved[layout.scalars_offset() + 2] = geometry.centred ? T{1} : T{0};
  const int64_t kept = saved != nullptr ? layout.kept_rows() : 0, block = layout.block_rows();
  const RowConstants shared = row_constants(p, counted_rows, R);
  Scratch<double> row_loss(p.B);
  parallel_products(runtime, (p.B + block - 1) / block, [&](int64_t begin, int64_t end) {
    ManyRows<T> rows(p, runtime, geometry, shared, block);
    Scratch<T> active(kept < p.B ? block * K : 0), state(block * ManyLayout::kRowState);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * block, n = p.B - first < block ? p.B - first : block;
      const bool keep = first < kept;
      rows.run(
          first, n, keep ? saved + first * K : active.get(),
          keep ? saved + layout.row_state_offset() + first * ManyLayout::kRowState : state.get(),
          row_loss.get() + first);
    }
  });
  write_loss(p, counted_rows, row_loss.get(), loss);
}

}  // namespace CFAL_ISA
}  // namespace cfal
