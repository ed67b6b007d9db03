// The diversity term (Eq. 6) by differences of all pairs of prototypes:
//   D_jk = |w_j - w_k|^2,  mu = mean D_jk,  R = mean (D_jk - mu)^2 over the P = K (K - 1) / 2 pairs
//   j < k, dR/dw_j = sum_k E_jk (w_j - w_k),  E_jk = (4 / P) (D_jk - mu).
#pragma once

#include <cstdint>

#include "distance.h"
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
  squared_distances(w + begin * D, D, end - begin, w, D, K, D, out, K, begin);
  for (int64_t j = begin; j < end; ++j)
    repair_distances(w + j * D, w + (j + 1) * D, D, K - j - 1, D, out + (j - begin) * K + j + 1);
}

constexpr int64_t kPairRows = 16;

// Statistics of all pairs in one pass over row blocks, merged in block order (Chan et al.'s update:
// no cancellation). The distances stay in kept [K, K] (upper triangle) unless it is null.
template <class T>
PairStatistics pair_statistics(const Runtime& runtime, const T* w, int64_t K, int64_t D,
                               double* kept) {
  struct Partial {
    double count, mean, squares;
  };
  const int64_t blocks = (K + kPairRows - 1) / kPairRows;
  Scratch<Partial> partials(blocks);
  parallel(runtime, blocks, kPairRows * K * D / 2, [&](int64_t begin, int64_t end) {
    Scratch<double> scratch(kept ? 0 : kPairRows * K);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kPairRows, last = first + kPairRows < K ? first + kPairRows : K;
      double* distances = kept ? kept + first * K : scratch.get();
      pair_distances(w, K, D, first, last, distances);
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
