// Squared distances by direct differences, q = sum_d (f_d - w_d)^2: no digits lost to |f|^2 + |w|^2
// - 2 f w. Lanes accumulate kDistanceBlock features in T, blocks add up in double, so the error
// does not grow with D.
#pragma once

#include <cstdint>

#include "panels.h"
#include "scratch.h"
#include "simd.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kDistanceBlock = 512;
// Accumulators of a tile, besides its rows and one prototype, fit the vector registers: 32 of
// AVX-512, 16 elsewhere. There are more of them than a fused multiply-add takes cycles, times two a
// cycle.
constexpr int kTileRows = kVectorBytes == 64 ? 4 : 3;
constexpr int kTilePrototypes = kVectorBytes == 64 ? 4 : 3;
// With 16 registers one row against 7 to 12 prototypes fills a tile as well, and the features pass
// as one stream. It pays while the block of prototypes, read for every row, stays in the L1 cache.
constexpr int kRowPrototypes = 12;
constexpr int64_t kLeastForOneRow = kVectorBytes == 64 ? INT64_MAX : 7;
constexpr int64_t kOneRowBytes = 20480;

// Where the distance of row r and prototype p goes.
struct DistanceView {
  double* data;
  int64_t row, prototype;

  // A [rows, K] matrix at stride ld.
  static DistanceView matrix(double* data, int64_t ld) { return {data, ld, 1}; }

  double& at(int64_t r, int64_t p) const { return data[r * row + p * prototype]; }
  DistanceView from(int64_t r, int64_t p) const {
    return {data + r * row + p * prototype, row, prototype};
  }
};

// q[r, p] += sum over n features of (f[r] - w[p])^2; f: R rows at stride ldf. kAhead: also fetches
// the R rows after f, each of which may start a new page.
template <int R, int P, bool kAhead, class T, bool kPanels>
inline void add_distances(const T* f, int64_t ldf, PrototypeView<T, kPanels> w, int64_t n,
                          DistanceView q) {
  constexpr int kPadded = R * P == 1 ? 1 : (R * P + 3) / 4 * 4;
  Vec<T> sum[kPadded];  // [R, P]
#pragma GCC unroll 16
  for (int i = 0; i < kPadded; ++i) sum[i] = Vec<T>{};
  // One register of columns; of a last one only `count` columns count. Inlined, or the sums would
  // live in memory.
  const auto add = [&]<bool kFull>(const T* fd, const T* wd,
                                   int64_t count) __attribute__((always_inline)) {
    Vec<T> fr[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      fr[r] = kFull ? load(fd + r * ldf) : load_first(fd + r * ldf, count);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const Vec<T> wp = kFull ? load(wd + p * w.row()) : load_first(wd + p * w.row(), count);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = fr[r] - wp;
        sum[r * P + p] += difference * difference;
      }
    }
  };
  const T* panel = w.data;
  int64_t d = 0;
  for (; d + kPanel<T> <= n; d += kPanel<T>, panel += w.panel()) {
#pragma GCC unroll 16
    for (int r = 0; kAhead && r < R; ++r) __builtin_prefetch(f + (R + r) * ldf + d);
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPanel<T>; v += kLanes<T>)
      add.template operator()<true>(f + d + v, panel + v, kLanes<T>);
  }
  for (; d + kLanes<T> <= n; d += kLanes<T>, panel += kLanes<T>)
    add.template operator()<true>(f + d, panel, kLanes<T>);
  if (d < n) add.template operator()<false>(f + d, panel, n - d);
  if constexpr (kPadded == 1) {
    q.at(0, 0) += sum_lanes<T>(sum[0]);
  } else {
    double sums[kPadded];
#pragma GCC unroll 16
    for (int i = 0; i < kPadded; i += 4)
      sum_lanes_of_four<T>(sum[i], sum[i + 1], sum[i + 2], sum[i + 3], sums + i);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) q.at(r, p) += sums[r * P + p];
  }
}

// The same for 1 <= prototypes <= kMost.
template <int R, bool kAhead, int kMost, class T, bool kPanels>
inline void add_distances_to_group(int prototypes, const T* f, int64_t ldf,
                                   PrototypeView<T, kPanels> w, int64_t n, DistanceView q) {
  if constexpr (kMost > 1)
    if (prototypes < kMost)
      return add_distances_to_group<R, kAhead, kMost - 1>(prototypes, f, ldf, w, n, q);
  add_distances<R, kMost, kAhead>(f, ldf, w, n, q);
}

// R rows against `count` prototypes, in groups of nearly equal size: 10 as 3 + 3 + 4 rather than 4
// + 4 + 2.
template <int R, int kMost, class T, bool kPanels>
inline void add_distances_to_all(const T* f, int64_t ldf, PrototypeView<T, kPanels> w,
                                 int64_t count, int64_t n, DistanceView q) {
  const int64_t groups = (count + kMost - 1) / kMost;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g * count / groups;
    const int size = static_cast<int>((g + 1) * count / groups - k);
    if (g == 0)
      add_distances_to_group<R, true, kMost>(size, f, ldf, w, n, q);
    else
      add_distances_to_group<R, false, kMost>(size, f, ldf, w.from(k), n, q.from(0, k));
  }
}

// `rows` rows against `count` prototypes.
template <class T, bool kPanels>
inline void add_distances_of_rows(const T* f, int64_t ldf, int64_t rows,
                                  PrototypeView<T, kPanels> w, int64_t count, int64_t n,
                                  DistanceView q) {
  int64_t r = 0;
  const int64_t bytes = count * n * static_cast<int64_t>(sizeof(T));
  if (count >= kLeastForOneRow && bytes <= kOneRowBytes) {
    for (; r < rows; ++r)
      add_distances_to_all<1, kRowPrototypes>(f + r * ldf, ldf, w, count, n, q.from(r, 0));
    return;
  }
  for (; r + kTileRows <= rows; r += kTileRows)
    add_distances_to_all<kTileRows, kTilePrototypes>(f + r * ldf, ldf, w, count, n, q.from(r, 0));
  for (; r + 2 <= rows; r += 2)
    add_distances_to_all<2, kTilePrototypes>(f + r * ldf, ldf, w, count, n, q.from(r, 0));
  if (r < rows)
    add_distances_to_all<1, kTilePrototypes>(f + r * ldf, ldf, w, count, n, q.from(r, 0));
}

// q: distances of `rows` rows of D features at stride ldf to K prototypes.
template <class T, bool kPanels>
void squared_distances(const T* f, int64_t ldf, int64_t rows, PrototypeView<T, kPanels> w,
                       int64_t K, int64_t D, DistanceView q) {
  static_assert(kDistanceBlock % kPanel<T> == 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < K; ++k) q.at(r, k) = 0.0;
  for (int64_t block = 0; block < D; block += kDistanceBlock) {
    const int64_t n = D - block < kDistanceBlock ? D - block : kDistanceBlock;
    add_distances_of_rows(f + block, ldf, rows, w.from_column(block), K, n, q);
  }
}

// What a non-finite distance means: NaN if either row holds a NaN or inf; otherwise T overflowed,
// and the sum is made again in double (which may overflow to inf in turn: the affinity is then
// exactly 0).
template <class T, bool kPanels>
inline double repair_distance(const T* f, PrototypeView<T, kPanels> w, int64_t D) {
  double q = 0.0;
  bool finite = true;
  for (int64_t d = 0; d < D; ++d) {
    const double fd = f[d], wd = w.at(0, d);
    // x - x is 0 for every finite x and NaN otherwise.
    finite = finite && fd - fd == 0.0 && wd - wd == 0.0;
    const double difference = fd - wd;
    q += difference * difference;
  }
  return finite ? q : __builtin_nan("");
}

// Row f of D features against K prototypes.
template <class T, bool kPanels>
inline void repair_distances(const T* f, PrototypeView<T, kPanels> w, int64_t K, int64_t D,
                             DistanceView q) {
  for (int64_t k = 0; k < K; ++k)
    if (!(q.at(0, k) < __builtin_inf())) q.at(0, k) = repair_distance(f, w.from(k), D);
}

// The distance of one pair, bit for bit what squared_distances gives.
template <class T>
inline double squared_distance(const T* f, const T* w, int64_t D) {
  const MatrixRows<T> view{w, D};
  double q = 0.0;
  for (int64_t block = 0; block < D; block += kDistanceBlock)
    add_distances<1, 1, false>(f + block, 0, view.from_column(block),
                               D - block < kDistanceBlock ? D - block : kDistanceBlock, {&q, 0, 0});
  return q < __builtin_inf() ? q : repair_distance(f, view, D);
}

}  // namespace CFAL_ISA
}  // namespace cfal
