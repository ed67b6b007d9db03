// Few prototypes, the register tiles of the backward: rows of features pull prototypes towards them
// and are pulled,
//   grad_f_r = -sum_k e_rk (f_r - w_k),   grad_w_k += sum_r e_rk (f_r - w_k).
#pragma once

#include "simd.h"

namespace cfal {
namespace CFAL_ISA {

// A tile of rows and registers of columns: features and sums fill the vector registers. Two
// registers share what is broadcast of e; 32 registers of AVX-512 hold more rows instead, so that
// grad_w is read and written less often.
constexpr int64_t kPullRows = kVectorBytes == 64 ? 8 : 3;
constexpr int kPullVectors = kVectorBytes == 64 ? 1 : 2;

// R rows, V registers of columns; of the last register only n columns count if it is not kFull.
// kAhead: also fetches the R rows that follow, of f and of gf, each of which may start a new page.
template <class T, int R, int V, bool kFeatures, bool kPrototypes, bool kFull, bool kAhead>
inline void pull_lanes(const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw, int64_t K,
                       int64_t n, T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  Vec<T> fr[R][V], sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (kAhead) __builtin_prefetch(f + (R + r) * ldf);
    if (kAhead && kFeatures) __builtin_prefetch(gf + (R + r) * ldgf, 1);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const T* const p = f + r * ldf + v * kLanes<T>;
      fr[r][v] = kFull ? load(p) : load_first(p, n);
      sum[r][v] = Vec<T>{};
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> wk[V], gk[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      wk[v] = load(w + k * ldw + v * kLanes<T>);
      if (kPrototypes) gk[v] = load(gw + k * ldgw + v * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T er = e[k * kPullRows + r];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec<T> difference = fr[r][v] - wk[v];
        if (kFeatures) sum[r][v] -= er * difference;
        if (kPrototypes) gk[v] += er * difference;
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      if (kPrototypes) store(gw + k * ldgw + v * kLanes<T>, gk[v]);
  }
  if (kFeatures) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        T* const p = gf + r * ldgf + v * kLanes<T>;
        if (kFull)
          store(p, sum[r][v]);
        else
          store_first(p, sum[r][v], n);
      }
  }
}

// R rows: f, gf [R, n]; e [K, kPullRows], from the first of the R rows on; w, gw [K, n] at strides
// ldw, ldgw, readable and writable to the end of a register. gf is written, gw added to; either may
// be left out.
template <class T, int R, bool kFeatures, bool kPrototypes>
inline void pull(const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw, int64_t K, int64_t n,
                 T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));  // of the cache
  int64_t d = 0;
  const auto lanes = [&]<int V, bool kFull, bool kAhead>(int64_t columns) {
    pull_lanes<T, R, V, kFeatures, kPrototypes, kFull, kAhead>(
        f + d, ldf, e, w + d, ldw, K, columns, kFeatures ? gf + d : gf, ldgf,
        kPrototypes ? gw + d : gw, ldgw);
    d += columns;
  };
  while (d + kLine <= n) {
    constexpr int64_t kStep = kPullVectors * kLanes<T>;
    lanes.template operator()<kPullVectors, true, true>(kStep);
#pragma GCC unroll 4
    for (int64_t l = kStep; l < kLine; l += kStep)
      lanes.template operator()<kPullVectors, true, false>(kStep);
  }
  while (d + kLanes<T> <= n) lanes.template operator()<1, true, false>(kLanes<T>);
  if (d < n) lanes.template operator()<1, false, false>(n - d);
}

template <int n>
struct Size {
  static constexpr int value = n;
};

// At most kPullRows rows, in groups of at most one of each size: 7 = 4 + 2 + 1.
template <class T, bool kFeatures, bool kPrototypes>
inline void pull_rows(int64_t rows, const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw,
                      int64_t K, int64_t n, T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  const auto group = [&](auto size, int64_t r) {
    pull<T, decltype(size)::value, kFeatures, kPrototypes>(
        f + r * ldf, ldf, e + r, w, ldw, K, n, kFeatures ? gf + r * ldgf : gf, ldgf, gw, ldgw);
  };
  if (rows == kPullRows) return group(Size<kPullRows>{}, 0);
  int64_t r = 0;
  if constexpr (kPullRows > 4)
    if (rows >= 4) {
      group(Size<4>{}, 0);
      r = 4;
    }
  if (rows - r >= 2) {
    group(Size<2>{}, r);
    r += 2;
  }
  if (rows > r) group(Size<1>{}, r);
}

}  // namespace CFAL_ISA
}  // namespace cfal
