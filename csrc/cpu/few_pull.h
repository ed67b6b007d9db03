// Few prototypes, the register tiles of the backward: rows of features pull prototypes towards them
// and are pulled,
//   grad_f_r = -sum_k e_rk (f_r - w_k),   grad_w_k += sum_r e_rk (f_r - w_k).
#pragma once

#include "panels.h"

namespace cfal {
namespace CFAL_ISA {

// A tile of rows and a panel's columns: features and sums fill the vector registers.
constexpr int64_t kPullRows = kVectorBytes == 64 ? 8 : 3;

// What a pull does beside reading the rows.
struct Pull {
  bool features, prototypes;  // which gradients it makes
  bool fetches;               // the rows of f that follow are not in cache yet
};

// R rows and one panel, of which n columns count if it is not kFull; w and gw move on to the next.
// Also fetches the R rows of gf that follow, and of f on demand: each may start a new page.
template <class T, int R, Pull kPull, bool kFull>
__attribute__((always_inline)) inline void pull_panel(const T* f, int64_t ldf, const T* e,
                                                      const T*& w, int64_t K, int64_t n, T* gf,
                                                      int64_t ldgf, T*& gw) {
  constexpr int V = kPanelVectors;
  // Of register v, these columns count.
  const auto columns = [n](int v) {
    const int64_t left = n - v * kLanes<T>;
    return left < 0 ? 0 : (left < kLanes<T> ? left : kLanes<T>);
  };
  Vec<T> fr[R][V], sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (kFull && kPull.fetches) __builtin_prefetch(f + (R + r) * ldf);
    if (kFull && kPull.features) __builtin_prefetch(gf + (R + r) * ldgf, 1);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const T* const p = f + r * ldf + v * kLanes<T>;
      fr[r][v] = kFull ? load(p) : load_first(p, columns(v));
      sum[r][v] = Vec<T>{};
    }
  }
  const T* const end = e + K * kPullRows;
  do {
    Vec<T> wk[V], gk[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      wk[v] = load(w + v * kLanes<T>);
      if (kPull.prototypes) gk[v] = load(gw + v * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T er = e[r];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec<T> difference = fr[r][v] - wk[v];
        if (kPull.features) sum[r][v] -= er * difference;
        if (kPull.prototypes) gk[v] += er * difference;
      }
    }
    if (kPull.prototypes) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(gw + v * kLanes<T>, gk[v]);
      gw += kPanel<T>;
    }
    w += kPanel<T>;
    e += kPullRows;
  } while (e != end);
  if (kPull.features) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        T* const p = gf + r * ldgf + v * kLanes<T>;
        if (kFull)
          store(p, sum[r][v]);
        else
          store_first(p, sum[r][v], columns(v));
      }
  }
}

// R rows: f, gf [R, n]; e [K, kPullRows], from the first of the R rows on; w, gw: panels from the
// first of the n columns on. gf is written, gw added to; either may be left out. A function of its
// own, or what surrounds it would take registers from it.
template <class T, int R, Pull kPull>
__attribute__((noinline)) void pull(const T* f, int64_t ldf, const T* e, const T* w, int64_t K,
                                    int64_t n, T* gf, int64_t ldgf, T* gw) {
  for (; n >= kPanel<T>; n -= kPanel<T>, f += kPanel<T>) {
    pull_panel<T, R, kPull, true>(f, ldf, e, w, K, kPanel<T>, gf, ldgf, gw);
    if (kPull.features) gf += kPanel<T>;
  }
  if (n > 0) pull_panel<T, R, kPull, false>(f, ldf, e, w, K, n, gf, ldgf, gw);
}

template <int n>
struct Size {
  static constexpr int value = n;
};

// At most kPullRows rows, in groups of at most one of each size: 7 = 4 + 2 + 1.
template <class T, Pull kPull>
inline void pull_rows(int64_t rows, const T* f, int64_t ldf, const T* e, const T* w, int64_t K,
                      int64_t n, T* gf, int64_t ldgf, T* gw) {
  const auto group = [&](auto size, int64_t r) {
    pull<T, decltype(size)::value, kPull>(f + r * ldf, ldf, e + r, w, K, n,
                                          kPull.features ? gf + r * ldgf : gf, ldgf, gw);
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
