// The diversity term (Eq. 6) by differences of all pairs of prototypes:
//   D_jk = |w_j - w_k|^2,  mu = mean D_jk,  R = mean (D_jk - mu)^2 over the P = K (K - 1) / 2 pairs
//   j < k, dR/dw_j = sum_k E_jk (w_j - w_k),  E_jk = (4 / P) (D_jk - mu).
#pragma once

#include <cstdint>

#include "distance.h"
#include "pack.h"
#include "parallel.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kDoublePrototypes = 256;

struct PairStatistics {
  double mean = 0.0;      // mu
  double variance = 0.0;  // R
};

// D_jk for the row block j in [begin, end) and k > j (entries with k <= j are not meaningful),
// repaired where T overflowed. Up to kDoublePrototypes prototypes are passed in double whatever the
// compute type: D - mu cancels.
template <class T>
void pair_distances(const T* w, int64_t K, int64_t D, int64_t begin, int64_t end, double* out) {
  const MatrixRows<T> all{w, D};
  const auto distances = DistanceView::matrix(out, K);
  squared_distances(w + begin * D, D, end - begin, all.from(begin), K - begin, D,
                    distances.from(0, begin));
  for (int64_t j = begin; j < end; ++j)
    repair_distances(w + j * D, all.from(j + 1), K - j - 1, D, distances.from(j - begin, j + 1));
}

constexpr int64_t kPairRows = 16;

// Statistics of all pairs in one pass over row blocks, merged in block order (Chan et al.'s update:
// no cancellation). distances_of(first, last, out) writes the rows [first, last) of D, as
// pair_distances does, to out: a row of kept [K, K], or scratch memory if that is null.
template <class Distances>
PairStatistics pair_statistics(const Runtime& runtime, int64_t K, int64_t work_of_block,
                               double* kept, const Distances& distances_of) {
  struct Partial {
    double count, mean, squares;
  };
  const int64_t blocks = (K + kPairRows - 1) / kPairRows;
  Scratch<Partial> partials(blocks);
  parallel(runtime, blocks, work_of_block, [&](int64_t begin, int64_t end) {
    Scratch<double> scratch(kept ? 0 : kPairRows * K);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kPairRows, last = first + kPairRows < K ? first + kPairRows : K;
      double* distances = kept ? kept + first * K : scratch.get();
      distances_of(first, last, distances);
      // Prototypes may be nearly equidistant: the mean is summed as deviations from the first
      // distance, or the rounding of a sum of large equal terms would be all that is left of D -
      // mu.
      const double pivot = first + 1 < K ? distances[first + 1] : 0.0;
      double count = 0.0, sum = 0.0, squares = 0.0;
      for (int64_t j = first; j < last; ++j) {
        const double* row = distances + (j - first) * K;
        double in_row = 0.0;  // rows apart: the error grows with K, not with the number of pairs
        for (int64_t k = j + 1; k < K; ++k) in_row += row[k] - pivot;
        sum += in_row;
        count += static_cast<double>(K - j - 1);
      }
      const double mean = count > 0.0 ? pivot + sum / count : 0.0;
      for (int64_t j = first; j < last; ++j) {
        const double* row = distances + (j - first) * K;
        double in_row = 0.0;
        for (int64_t k = j + 1; k < K; ++k) in_row += (row[k] - mean) * (row[k] - mean);
        squares += in_row;
      }
      partials[block] = {count, mean, squares};
    }
  });
  Partial total = partials[0];
  for (int64_t block = 1; block < blocks; ++block) {
    const Partial& next = partials[block];
    const double count = total.count + next.count;
    if (next.count == 0.0) continue;
    const double delta = next.mean - total.mean;
    total.squares += next.squares + delta * delta * (total.count * next.count / count);
    total.mean += delta * (next.count / count);
    total.count = count;
  }
  return {total.mean, total.squares / total.count};
}

// The same from prototypes w [K, D].
template <class T>
PairStatistics pair_statistics(const Runtime& runtime, const T* w, int64_t K, int64_t D,
                               double* kept) {
  return pair_statistics(
      runtime, K, kPairRows * K * D / 2, kept,
      [&](int64_t first, int64_t last, double* out) { pair_distances(w, K, D, first, last, out); });
}

// The same for a few prototypes, in double, with all distances kept: blocks of columns are as many
// tasks, and each stays in the L1 cache.
inline PairStatistics pair_statistics_by_columns(const Runtime& runtime, const Problem& p,
                                                 double* kept) {
  const int64_t K = p.K(), blocks = (p.D + kDistanceBlock - 1) / kDistanceBlock;
  Scratch<double> parts(blocks * K * K);
  // Twice the work: a register holds half as many of double.
  parallel(runtime, blocks, 2 * K * K * kDistanceBlock, [&](int64_t begin, int64_t end) {
    constexpr int64_t kStride = kDistanceBlock + 64 / static_cast<int64_t>(sizeof(double));
    Scratch<double> w(K * kStride);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t column = block * kDistanceBlock,
                    n = p.D - column < kDistanceBlock ? p.D - column : kDistanceBlock;
      for (int64_t k = 0; k < K; ++k) read_prototype(p, k, column, n, w.get() + k * kStride);
      // Rows a tile's at a time, from the diagonal on: what is left of it is not needed.
      const MatrixRows<double> all{w.get(), kStride};
      for (int64_t j = 0; j + 1 < K; j += kTileRows)
        squared_distances(w.get() + j * kStride, kStride, K - j < kTileRows ? K - j : kTileRows,
                          all.from(j + 1), K - j - 1, n,
                          DistanceView::matrix(parts.get() + (block * K + j) * K + j + 1, K));
    }
  });
  bool finite = true;
  for (int64_t j = 0; j < K; ++j)
    for (int64_t k = j + 1; k < K; ++k) {
      double sum = 0.0;
      for (int64_t block = 0; block < blocks; ++block) sum += parts[(block * K + j) * K + k];
      kept[j * K + k] = sum;
      finite &= sum < __builtin_inf();
    }
  if (!finite) {
    const PrototypeRows<double> w(p);
    const MatrixRows<double> all{w.get(), p.D};
    for (int64_t j = 0; j + 1 < K; ++j)
      repair_distances(w.row(j), all.from(j + 1), K - j - 1, p.D,
                       DistanceView::matrix(kept + j * K + j + 1, K));
  }
  return pair_statistics(runtime, K, kPairRows * K, kept, [](int64_t, int64_t, double*) {});
}

inline double pair_scale(int64_t K) {
  return 4.0 / (0.5 * static_cast<double>(K) * static_cast<double>(K - 1));
}

// E [K, K] at stride ld, in T, with a zero diagonal, from kept distances.
template <class T>
void pair_coefficients(const double* kept, int64_t K, double mean, T* out, int64_t ld) {
  const double scale = pair_scale(K);
  for (int64_t j = 0; j < K; ++j) {
    out[j * ld + j] = T{0};
    for (int64_t k = j + 1; k < K; ++k)
      out[j * ld + k] = out[k * ld + j] = static_cast<T>(scale * (kept[j * K + k] - mean));
  }
}

}  // namespace CFAL_ISA
}  // namespace cfal
