// Squared distances by direct differences, q = sum_d (f_d - w_d)^2: no digits lost to |f|^2 + |w|^2
// - 2 f w. Lanes accumulate kDistanceBlock features in T, blocks add up in double, so the error
// does not grow with D.
#pragma once

#include <cstdint>

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

// q[r * ldq + p] += sum over n features of (f[r] - w[p])^2; f: R rows at stride ldf, w: P rows at
// stride ldw. kAhead: also fetches the R rows after f, each of which may start a new page.
template <class T, int R, int P, bool kAhead>
inline void add_distances(const T* f, int64_t ldf, const T* w, int64_t ldw, int64_t n, double* q,
                          int64_t ldq) {
  constexpr int kPadded = R * P == 1 ? 1 : (R * P + 3) / 4 * 4;
  Vec<T> sum[kPadded];  // [R, P]
#pragma GCC unroll 16
  for (int i = 0; i < kPadded; ++i) sum[i] = Vec<T>{};
  int64_t d = 0;
  for (; d + kLanes<T> <= n; d += kLanes<T>) {
    Vec<T> fr[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      fr[r] = load(f + r * ldf + d);
      if (kAhead) __builtin_prefetch(f + (R + r) * ldf + d);
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const Vec<T> wp = load(w + p * ldw + d);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = fr[r] - wp;
        sum[r * P + p] += difference * difference;
      }
    }
  }
  // Unrolled like the rest: sums that are indexed at run time would live in memory.
  if (d < n) {
    Vec<T> fr[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) fr[r] = load_first(f + r * ldf + d, n - d);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const Vec<T> wp = load_first(w + p * ldw + d, n - d);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = fr[r] - wp;
        sum[r * P + p] += difference * difference;
      }
    }
  }
  if constexpr (kPadded == 1) {
    q[0] += sum_lanes<T>(sum[0]);
  } else {
    double sums[kPadded];
#pragma GCC unroll 16
    for (int i = 0; i < kPadded; i += 4)
      sum_lanes_of_four<T>(sum[i], sum[i + 1], sum[i + 2], sum[i + 3], sums + i);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) q[r * ldq + p] += sums[r * P + p];
  }
}

// The same for 1 <= prototypes <= kMost.
template <class T, int R, bool kAhead, int kMost>
inline void add_distances_to_group(int prototypes, const T* f, int64_t ldf, const T* w, int64_t ldw,
                                   int64_t n, double* q, int64_t ldq) {
  if constexpr (kMost > 1)
    if (prototypes < kMost)
      return add_distances_to_group<T, R, kAhead, kMost - 1>(prototypes, f, ldf, w, ldw, n, q, ldq);
  add_distances<T, R, kMost, kAhead>(f, ldf, w, ldw, n, q, ldq);
}

// R rows against `count` prototypes, in groups of nearly equal size: 10 as 3 + 3 + 4 rather than 4
// + 4 + 2.
template <class T, int R, int kMost>
inline void add_distances_to_all(const T* f, int64_t ldf, const T* w, int64_t ldw, int64_t count,
                                 int64_t n, double* q, int64_t ldq) {
  const int64_t groups = (count + kMost - 1) / kMost;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g * count / groups;
    const int size = static_cast<int>((g + 1) * count / groups - k);
    if (g == 0)
      add_distances_to_group<T, R, true, kMost>(size, f, ldf, w, ldw, n, q, ldq);
    else
      add_distances_to_group<T, R, false, kMost>(size, f, ldf, w + k * ldw, ldw, n, q + k, ldq);
  }
}

// `rows` rows against `count` prototypes.
template <class T>
inline void add_distances_of_rows(const T* f, int64_t ldf, int64_t rows, const T* w, int64_t ldw,
                                  int64_t count, int64_t n, double* q, int64_t ldq) {
  int64_t r = 0;
  const int64_t bytes = count * n * static_cast<int64_t>(sizeof(T));
  if (count >= kLeastForOneRow && bytes <= kOneRowBytes) {
    for (; r < rows; ++r)
      add_distances_to_all<T, 1, kRowPrototypes>(f + r * ldf, ldf, w, ldw, count, n, q + r * ldq,
                                                 ldq);
    return;
  }
  for (; r + kTileRows <= rows; r += kTileRows)
    add_distances_to_all<T, kTileRows, kTilePrototypes>(f + r * ldf, ldf, w, ldw, count, n,
                                                        q + r * ldq, ldq);
  for (; r + 2 <= rows; r += 2)
    add_distances_to_all<T, 2, kTilePrototypes>(f + r * ldf, ldf, w, ldw, count, n, q + r * ldq,
                                                ldq);
  if (r < rows)
    add_distances_to_all<T, 1, kTilePrototypes>(f + r * ldf, ldf, w, ldw, count, n, q + r * ldq,
                                                ldq);
}

// q [rows, K] at stride ldq: distances of `rows` rows at stride ldf to K prototypes at stride ldw.
// Prototypes before `first` are left out.
template <class T>
void squared_distances(const T* f, int64_t ldf, int64_t rows, const T* w, int64_t ldw, int64_t K,
                       int64_t D, double* q, int64_t ldq, int64_t first = 0) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = first; k < K; ++k) q[r * ldq + k] = 0.0;
  for (int64_t block = 0; block < D; block += kDistanceBlock) {
    const int64_t n = D - block < kDistanceBlock ? D - block : kDistanceBlock;
    add_distances_of_rows(f + block, ldf, rows, w + first * ldw + block, ldw, K - first, n,
                          q + first, ldq);
  }
}

// What a non-finite distance means: NaN if either row holds a NaN or inf; otherwise T overflowed,
// and the sum is made again in double (which may overflow to inf in turn: the affinity is then
// exactly 0).
template <class T>
inline double repair_distance(const T* f, const T* w, int64_t D) {
  double q = 0.0;
  bool finite = true;
  for (int64_t d = 0; d < D; ++d) {
    const double fd = f[d], wd = w[d];
    // x - x is 0 for every finite x and NaN otherwise.
    finite = finite && fd - fd == 0.0 && wd - wd == 0.0;
    const double difference = fd - wd;
    q += difference * difference;
  }
  return finite ? q : __builtin_nan("");
}

template <class T>
inline void repair_distances(const T* f, const T* w, int64_t ldw, int64_t K, int64_t D, double* q) {
  for (int64_t k = 0; k < K; ++k)
    if (!(q[k] < __builtin_inf())) q[k] = repair_distance(f, w + k * ldw, D);
}

// The distance of one pair, bit for bit what squared_distances gives.
template <class T>
inline double squared_distance(const T* f, const T* w, int64_t D) {
  double q = 0.0;
  for (int64_t block = 0; block < D; block += kDistanceBlock)
    add_distances<T, 1, 1, false>(f + block, 0, w + block, 0,
                                  D - block < kDistanceBlock ? D - block : kDistanceBlock, &q, 0);
  return q < __builtin_inf() ? q : repair_distance(f, w, D);
}

}  // namespace CFAL_ISA
}  // namespace cfal
