// Few prototypes, backward. With e_ij = g_i c_ij for the upstream gradient g,
//   grad_f_i = -sum_j e_ij (f_i - w_j),   grad_w_j = sum_i e_ij (f_i - w_j) + G sum_k E_jk (w_j -
//   w_k),   G = sum_i g_i dl_i/dR.
// A task owns a tile of columns and a chunk of rows: it writes its part of grad_f and keeps grad_w
// in cache, so there is nothing to synchronise and one fixed order of additions.
#pragma once

#include "../core/saved.h"
#include "pack.h"
#include "parallel.h"
#include "simd.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kFlushRows = 128;  // rows summed in T before they are added up in double
constexpr int64_t kTaskTarget = 64;  // tasks wanted, whatever the number of threads
constexpr int64_t kChunkRows = 512;  // rows that a chunk has at least

// Rows pulled together: their features and sums fill about half of the vector registers.
constexpr int64_t kTileRowsBackward = kVectorBytes == 64 ? 8 : 4;

// Columns of a tile: its rows are long enough for the processor to see them coming, and the tiles
// of w and grad_w stay next to the L1 cache.
template <class T>
inline int64_t tile_columns(int64_t K) {
  const int64_t columns = 40960 / (2 * K * static_cast<int64_t>(sizeof(T)));
  if (columns >= 512) return 512;
  return columns < 64 ? 64 : columns / 64 * 64;
}

// One register of columns of R rows; n < kLanes: the last columns. kAhead: also fetches the R rows
// that follow, of f and of gf, each of which may start a new page.
template <class T, int R, bool kFeatures, bool kPrototypes, bool kFull, bool kAhead>
inline void pull_lanes(const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw, int64_t K,
                       int64_t n, T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  Vec<T> fr[R], sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    fr[r] = kFull ? load(f + r * ldf) : load_first(f + r * ldf, n);
    if (kAhead) __builtin_prefetch(f + (R + r) * ldf);
    if (kAhead && kFeatures) __builtin_prefetch(gf + (R + r) * ldgf, 1);
    sum[r] = Vec<T>{};
  }
  for (int64_t k = 0; k < K; ++k) {
    const Vec<T> wk = kFull ? load(w + k * ldw) : load_first(w + k * ldw, n);
    Vec<T> even{}, odd{};  // two chains of additions, half as long
    if (kPrototypes) even = load(gw + k * ldgw);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> difference = fr[r] - wk;
      const T er = e[k * kTileRowsBackward + r];
      if (kFeatures) sum[r] -= er * difference;
      if (kPrototypes) (r % 2 == 0 ? even : odd) += er * difference;
    }
    if (kPrototypes) store(gw + k * ldgw, even + odd);
  }
  if (kFeatures) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (kFull)
        store(gf + r * ldgf, sum[r]);
      else
        store_first(gf + r * ldgf, sum[r], n);
    }
  }
}

// R rows: f, gf [R, n]; e [K, kTileRowsBackward], from the first of the R rows on; w, gw [K, n] at
// strides ldw, ldgw. gf is written, gw added to; either may be left out.
template <class T, int R, bool kFeatures, bool kPrototypes>
inline void pull(const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw, int64_t K, int64_t n,
                 T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));  // of the cache
  int64_t d = 0;
  const auto lanes = [&]<bool kFull, bool kAhead>(int64_t count) {
    pull_lanes<T, R, kFeatures, kPrototypes, kFull, kAhead>(f + d, ldf, e, w + d, ldw, K, count,
                                                            kFeatures ? gf + d : gf, ldgf,
                                                            kPrototypes ? gw + d : gw, ldgw);
    d += count;
  };
  while (d + kLine <= n) {
    lanes.template operator()<true, true>(kLanes<T>);
#pragma GCC unroll 4
    for (int64_t l = kLanes<T>; l < kLine; l += kLanes<T>)
      lanes.template operator()<true, false>(kLanes<T>);
  }
  while (d + kLanes<T> <= n) lanes.template operator()<true, false>(kLanes<T>);
  if (d < n) lanes.template operator()<false, false>(n - d);
}

template <int n>
struct Size {
  static constexpr int value = n;
};

template <class T, bool kFeatures, bool kPrototypes>
inline void pull_rows(int64_t rows, const T* f, int64_t ldf, const T* e, const T* w, int64_t ldw,
                      int64_t K, int64_t n, T* gf, int64_t ldgf, T* gw, int64_t ldgw) {
  // At most one group of each size: 7 = 4 + 2 + 1.
  const auto group = [&](auto size, int64_t r) {
    pull<T, decltype(size)::value, kFeatures, kPrototypes>(
        f + r * ldf, ldf, e + r, w, ldw, K, n, kFeatures ? gf + r * ldgf : gf, ldgf, gw, ldgw);
  };
  int64_t r = 0;
  if constexpr (kTileRowsBackward == 8)
    if (rows == 8) return group(Size<8>{}, 0);
  if (rows - r >= 4) {
    group(Size<4>{}, r);
    r += 4;
  }
  if (rows - r >= 2) {
    group(Size<2>{}, r);
    r += 2;
  }
  if (rows > r) group(Size<1>{}, r);
}

template <class T>
class FewBackward {
 public:
  FewBackward(const Problem& p, const UpstreamView& upstream, const T* saved, void* grad_features,
              void* grad_prototypes)
      : p_(p),
        upstream_(upstream),
        layout_{p.B, p.K()},
        saved_(saved),
        grad_features_(grad_features),
        grad_prototypes_(grad_prototypes),
        prototypes_(p),
        tile_(tile_columns<T>(p.K()) < p.D ? tile_columns<T>(p.K()) : p.D),
        tiles_((p.D + tile_ - 1) / tile_) {
    const int64_t wanted = kTaskTarget / tiles_, possible = p.B / kChunkRows;
    chunks_ = wanted < possible ? wanted : possible;
    if (chunks_ < 1) chunks_ = 1;
  }

  void run(const Runtime& runtime) {
    const int64_t K = p_.K(), D = p_.D;
    if (grad_prototypes_ != nullptr) {
      totals_.resize(chunks_ * K * D);
      diversity_slope_ = 0.0;
      if (p_.has_diversity())
        for (int64_t i = 0; i < p_.B; ++i)
          if (p_.target_at(i) != p_.ignore_index)
            diversity_slope_ += upstream_.at(i) * saved_[i * layout_.stride() + K];
    }
    const int64_t rows = (p_.B + chunks_ - 1) / chunks_;
    parallel(runtime, tiles_ * chunks_, rows * K * tile_ * 2, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / tiles_ * rows,
                      last = first + rows < p_.B ? first + rows : p_.B;
        run_task(first, last, task % tiles_ * tile_, task / tiles_);
      }
    });
    if (grad_prototypes_ != nullptr)
      parallel(runtime, tiles_, (chunks_ + K) * K * tile_, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) finish_prototypes(tile * tile_);
      });
  }

 private:
  // Rows [first, last), columns from `column` on; grad_w goes to totals [chunk].
  void run_task(int64_t first, int64_t last, int64_t column, int64_t chunk) {
    const int64_t K = p_.K(), D = p_.D, n = D - column < tile_ ? D - column : tile_;
    // Whole registers, and a cache line more: rows a power of two apart share few cache sets.
    const int64_t padded =
        (n + kLanes<T> - 1) / kLanes<T> * kLanes<T> + 64 / static_cast<int64_t>(sizeof(T));
    FeatureRows<T> features(p_, kTileRowsBackward, tile_);
    Scratch<T> e(kTileRowsBackward * K), out(kTileRowsBackward * padded),
        finite(kTileRowsBackward * n), local(grad_prototypes_ ? K * padded : 0);
    Scratch<T> w(K * padded);
    for (int64_t k = 0; k < K; ++k)
      __builtin_memcpy(w.get() + k * padded, prototypes_.row(k) + column,
                       static_cast<size_t>(n) * sizeof(T));
    double* total = grad_prototypes_ ? totals_.get() + chunk * K * D + column : nullptr;
    const bool direct = p_.features.dtype == dtype_of<T>();
    if (total != nullptr) {
      for (int64_t k = 0; k < K; ++k)
        for (int64_t d = 0; d < n; ++d) total[k * D + d] = 0.0;
      for (int64_t k = 0; k < K * padded; ++k) local[k] = T{0};
    }
    int64_t pending = 0;
    for (int64_t i = first; i < last; i += kTileRowsBackward) {
      const int64_t rows = last - i < kTileRowsBackward ? last - i : kTileRowsBackward;
      T* gf = grad_features_ == nullptr
                  ? nullptr
                  : (direct ? static_cast<T*>(grad_features_) + i * D + column : out.get());
      const int64_t ldgf = direct ? D : padded;
      bool pulls[kTileRowsBackward];
      const int64_t pulling = scale_coefficients(i, rows, e.get(), pulls);
      if (pulling > 0) {
        const T* f = features.rows(i, rows, column, n);
        int64_t ldf = features.ld();
        if (pulling < rows) {  // 0 times what a row without a gradient holds may be NaN
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t d = 0; d < n; ++d) finite[r * n + d] = pulls[r] ? f[r * ldf + d] : T{0};
          f = finite.get();
          ldf = n;
        }
        if (gf != nullptr && total != nullptr)
          pull_rows<T, true, true>(rows, f, ldf, e.get(), w.get(), padded, K, n, gf, ldgf,
                                   local.get(), padded);
        else if (gf != nullptr)
          pull_rows<T, true, false>(rows, f, ldf, e.get(), w.get(), padded, K, n, gf, ldgf, nullptr,
                                    0);
        else if (total != nullptr)
          pull_rows<T, false, true>(rows, f, ldf, e.get(), w.get(), padded, K, n, nullptr, 0,
                                    local.get(), padded);
      } else if (gf != nullptr) {
        for (int64_t r = 0; r < rows; ++r)
          __builtin_memset(gf + r * ldgf, 0, static_cast<size_t>(n) * sizeof(T));
      }
      if (gf != nullptr && !direct)
        for (int64_t r = 0; r < rows; ++r)
          write_row(grad_features_, p_.features.dtype, (i + r) * D + column, n, gf + r * ldgf);
      pending += rows;
      if (total != nullptr && (pending >= kFlushRows || i + rows >= last)) {
        flush(local.get(), padded, K, n, total);
        pending = 0;
      }
    }
  }

  // e = g c for `rows` rows. Returns how many of them pull at all: an inactive or ignored row has
  // only zeros, whatever it holds, and its gradient is exactly 0.
  int64_t scale_coefficients(int64_t i, int64_t rows, T* e, bool* pulls) const {
    const int64_t K = p_.K();
    int64_t pulling = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const T* c = saved_ + (i + r) * layout_.stride();
      const bool ignored = p_.target_at(i + r) == p_.ignore_index;
      const T g = ignored ? T{0} : static_cast<T>(upstream_.at(i + r));
      bool any = false;
      for (int64_t k = 0; k < K; ++k) {
        const T value = ignored ? T{0} : g * c[k];
        e[k * kTileRowsBackward + r] = value;
        any |= value != T{0};
      }
      pulls[r] = any;
      pulling += any;
    }
    return pulling;
  }

  void flush(T* local, int64_t padded, int64_t K, int64_t n, double* total) const {
    for (int64_t k = 0; k < K; ++k)
      for (int64_t d = 0; d < n; ++d) {
        total[k * p_.D + d] += local[k * padded + d];
        local[k * padded + d] = T{0};
      }
  }

  // Adds the chunks in order, then the diversity term, for the columns of one tile. The term pulls
  // prototypes towards each other as the loss pulls rows: sum_k E_jk (w_j - w_k) is the gradient of
  // a row w_j with coefficients -E_jk.
  void finish_prototypes(int64_t column) {
    const int64_t K = p_.K(), D = p_.D, n = D - column < tile_ ? D - column : tile_;
    Scratch<T> e(kTileRowsBackward * K), out(kTileRowsBackward * n);
    Scratch<double> sum(n);
    for (int64_t first = 0; first < K; first += kTileRowsBackward) {
      const int64_t rows = K - first < kTileRowsBackward ? K - first : kTileRowsBackward;
      if (p_.has_diversity()) {
        const T* pairs = saved_ + layout_.pairs_offset() + first * layout_.stride();
        const T* w = prototypes_.get() + column;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t k = 0; k < K; ++k)
            e[k * kTileRowsBackward + r] =
                static_cast<T>(-diversity_slope_ * pairs[r * layout_.stride() + k]);
        pull_rows<T, true, false>(rows, w + first * D, D, e.get(), w, D, K, n, out.get(), n,
                                  nullptr, 0);
      } else {
        __builtin_memset(out.get(), 0, static_cast<size_t>(rows * n) * sizeof(T));
      }
      for (int64_t r = 0; r < rows; ++r) {
        T* const row = out.get() + r * n;
        const double* total = totals_.get() + (first + r) * D + column;
        for (int64_t d = 0; d < n; ++d) sum[d] = total[d];
        for (int64_t chunk = 1; chunk < chunks_; ++chunk)
          for (int64_t d = 0; d < n; ++d) sum[d] += total[chunk * K * D + d];
        for (int64_t d = 0; d < n; ++d) row[d] = static_cast<T>(sum[d] + row[d]);
        write_row(grad_prototypes_, p_.prototypes_dtype, (first + r) * D + column, n, row);
      }
    }
  }

  const Problem& p_;
  const UpstreamView& upstream_;
  const FewLayout layout_;
  const T* saved_;
  void* grad_features_;
  void* grad_prototypes_;
  const PrototypeRows<T> prototypes_;
  const int64_t tile_, tiles_;
  int64_t chunks_;
  Scratch<double> totals_;  // [chunks, K, D]
  double diversity_slope_ = 0.0;
};

}  // namespace CFAL_ISA
}  // namespace cfal
