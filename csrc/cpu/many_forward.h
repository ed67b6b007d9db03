// Many prototypes, forward: row blocks and the moments of the diversity term in parallel, active
// affinities kept while the budget lasts; then the rows' losses.
#pragma once

#include "many_diversity.h"
#include "many_rows.h"

namespace cfal {
namespace CFAL_ISA {

// Of a row's last formulas, in multiply-adds.
constexpr int64_t kFinishWork = 500;

inline RowConstants row_constants(const Problem& p, int64_t counted_rows, double R) {
  const double scale = row_scale(p, counted_rows);
  return {p.has_diversity() ? p.diversity_weight * R : 0.0, scale, 2.0 / p.sigma * scale};
}

template <class T>
void many_forward(const Problem& p, int64_t counted_rows, const Runtime& runtime, T* loss,
                  T* saved) {
  const int64_t K = p.K();
  const ManyLayout layout{p.B, K, p.D};
  ManyGeometry<T> geometry(p, runtime, true);
  geometry.decide(p.B);
  const int64_t kept = saved != nullptr ? layout.kept_rows() : 0, block = layout.block_rows(),
                blocks = (p.B + block - 1) / block;
  T* const matrix = saved != nullptr && p.has_diversity() && layout.keeps_matrix()
                        ? saved + layout.matrix_offset()
                        : nullptr;
  const ManyDiversity<T> diversity(p, runtime, geometry);
  const int64_t moments = p.has_diversity() ? diversity.moment_tasks() : 0;
  Scratch<RowAtHand> rows(p.B);
  Scratch<double> row_loss(p.B), moment(moments);
  // The rows do not need R before they are finished. Moments, the smaller tasks unless there are
  // very many prototypes or very few rows, fill up the end.
  parallel_products(runtime, blocks + moments, [&](TaskQueue& queue) {
    ManyRows<T> worker(p, runtime, geometry, block);
    Scratch<T> active(kept < p.B ? block * K : 0);
    for (int64_t task; queue.take(task);) {
      if (task >= blocks) {
        moment[task - blocks] = diversity.moment_task(task - blocks, matrix);
        continue;
      }
      const int64_t first = task * block, n = p.B - first < block ? p.B - first : block;
      worker.run(first, n, first < kept ? saved + first * K : active.get(), rows.get() + first);
    }
  });
  PairStatistics statistics{};
  if (p.has_diversity())
    statistics = moments > 0 ? diversity.moments(moment.get()) : diversity.pairs(matrix);
  const RowConstants shared = row_constants(p, counted_rows, statistics.variance);
  parallel(runtime, p.B, kFinishWork, [&](int64_t begin, int64_t end) {
    T state[ManyLayout::kRowState];
    for (int64_t i = begin; i < end; ++i)
      row_loss[i] = finish_row(
          p, shared, rows[i],
          i < kept ? saved + layout.row_state_offset() + i * ManyLayout::kRowState : state);
  });
  if (saved != nullptr) {
    T* const scalars = saved + layout.scalars_offset();
    scalars[0] = static_cast<T>(statistics.variance);
    scalars[1] = static_cast<T>(statistics.mean);
    scalars[2] = geometry.centred ? T{1} : T{0};
    // No element is left as it was found.
    for (int64_t i = layout.matrix_offset(); matrix == nullptr && i < layout.numel(); ++i)
      saved[i] = T{0};
  }
  write_loss(p, counted_rows, row_loss.get(), loss);
}

}  // namespace CFAL_ISA
}  // namespace cfal
