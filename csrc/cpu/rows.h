// What both regimes do with the distances and losses of rows.
#pragma once

#include "../core/formulas.h"
#include "../core/problem.h"
#include "exponential.h"

namespace cfal {
namespace CFAL_ISA {

// a = exp(-q / sigma).
inline double affinity(double q, double sigma) {
  return exp_nonpositive<double>(Vec<double>{} + q * (-1.0 / sigma))[0];
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

// What every row of a call shares.
struct RowConstants {
  double diversity;  // rho R
  double scale;      // 1 / N for the mean
  double u;          // 2 / sigma * scale
};

}  // namespace CFAL_ISA
}  // namespace cfal
