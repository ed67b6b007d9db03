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

// q[r * ldq + p] += sum over n features of (f[r] - w[p])^2; f: R rows at stride ldf, w: P rows at
// stride ldw. kAhead: also fetches the R rows after f, each of which may start a new page.
template <class T, int R, int P, bool kAhead>
inline void add_distances(const T* f, int64_t ldf, const T* w, int64_t ldw, int64_t n, double* q,
                          int64_t ldq) {
  Vec<T> sum[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[r][p] = Vec<T>{};
  int64_t d = 0;
  for (; d + kLanes<T> <= n; d += kLanes<T>) {
    Vec<T> fr[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      fr[r] = load(f + r * ldf + d);
      if (kAhead) __builtin_prefetch(f + (R + r) * ldf + d);
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const Vec<T> wp = load(w + p * ldw + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = fr[r] - wp;
        sum[r][p] += difference * difference;
      }
    }
  }
  if (d < n) {
    for (int p = 0; p < P; ++p) {
      const Vec<T> wp = load_first(w + p * ldw + d, n - d);
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = load_first(f + r * ldf + d, n - d) - wp;
        sum[r][p] += difference * difference;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) q[r * ldq + p] += sum_lanes<T>(sum[r][p]);
}

template <class T, int R, bool kAhead>
inline void add_distances_to_group(int prototypes, const T* f, int64_t ldf, const T* w, int64_t ldw,
                                   int64_t n, double* q, int64_t ldq) {
  static_assert(kTilePrototypes <= 4);
  switch (prototypes) {
    case 1:
      return add_distances<T, R, 1, kAhead>(f, ldf, w, ldw, n, q, ldq);
    case 2:
      return add_distances<T, R, 2, kAhead>(f, ldf, w, ldw, n, q, ldq);
    case 3:
      return add_distances<T, R, 3, kAhead>(f, ldf, w, ldw, n, q, ldq);
    default:
      if constexpr (kTilePrototypes == 4) add_distances<T, R, 4, kAhead>(f, ldf, w, ldw, n, q, ldq);
  }
}

// R rows against `count` prototypes, in groups of nearly equal size: 9 as 3 + 3 + 3 rather than 4 +
// 4 + 1.
template <class T, int R>
inline void add_distances_to_all(const T* f, int64_t ldf, const T* w, int64_t ldw, int64_t count,
                                 int64_t n, double* q, int64_t ldq) {
  const int64_t groups = (count + kTilePrototypes - 1) / kTilePrototypes;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g * count / groups;
    const int size = static_cast<int>((g + 1) * count / groups - k);
    if (g == 0)
      add_distances_to_group<T, R, true>(size, f, ldf, w, ldw, n, q, ldq);
    else
      add_distances_to_group<T, R, false>(size, f, ldf, w + k * ldw, ldw, n, q + k, ldq);
  }
}

// q [rows, K] at stride ldq: distances of `rows` rows at stride ldf to K prototypes. Prototypes
// before `first` are left out. packed: scratch of K * kDistanceBlock elements, or null. With it,
// blocks of long prototypes are copied together first: rows a power of two apart share few cache
// sets.
template <class T>
void squared_distances(const T* f, int64_t ldf, int64_t rows, const T* w, int64_t ldw, int64_t K,
                       int64_t D, double* q, int64_t ldq, int64_t first = 0, T* packed = nullptr) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = first; k < K; ++k) q[r * ldq + k] = 0.0;
  for (int64_t block = 0; block < D; block += kDistanceBlock) {
    const int64_t n = D - block < kDistanceBlock ? D - block : kDistanceBlock;
    const bool pack = packed != nullptr && D > kDistanceBlock && rows > kTileRows;
    if (pack)
      for (int64_t k = first; k < K; ++k)
        __builtin_memcpy(packed + k * kDistanceBlock, w + k * ldw + block,
                         static_cast<size_t>(n) * sizeof(T));
    const T* const prototypes = pack ? packed + first * kDistanceBlock : w + first * ldw + block;
    const int64_t stride = pack ? kDistanceBlock : ldw;
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const T* const fr = f + r * ldf + block;
      double* const out = q + r * ldq + first;
      if (rows - r >= kTileRows)
        add_distances_to_all<T, kTileRows>(fr, ldf, prototypes, stride, K - first, n, out, ldq);
      else
        for (int64_t i = 0; i < rows - r; ++i)
          add_distances_to_all<T, 1>(fr + i * ldf, ldf, prototypes, stride, K - first, n,
                                     out + i * ldq, ldq);
    }
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
