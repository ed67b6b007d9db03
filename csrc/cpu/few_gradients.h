// Few prototypes, the gradients from coefficients c. With e_ij = g_i c_ij for the upstream gradient
// g,
//   grad_f_i = -sum_j e_ij (f_i - w_j),   grad_w_j = sum_i e_ij (f_i - w_j) + G sum_k E_jk (w_j -
//   w_k),   G = sum_i g_i dl_i/dR.
//
// Rows come in chunks, which a thread takes whole or a tile of columns at a time, and in blocks of
// a chunk, in order. A chunk has sums of its own, so there is nothing to synchronise, and the order
// of additions depends on the shape alone: neither on threads nor on how chunks are cut into tiles
// and blocks.
#pragma once

#include "../core/saved.h"
#include "few_pull.h"
#include "pack.h"
#include "parallel.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kMostChunks = 32;
constexpr int64_t kBlockRows = (kPullRows == 8 ? 4 : 8) * kPullRows;  // that a block has at most
// Rows summed in T before they are added up in double: whole blocks of any size that is used.
constexpr int64_t kFlushRows = kPullRows == 8 ? 128 : 144;
static_assert(kFlushRows % kBlockRows == 0 && kBlockRows % (2 * kPullRows) == 0);

// Of w and grad_w, in a tile: inside the L1 cache; in a task: inside a thread's part of the L2
// cache.
constexpr int64_t kTileBytes = 20 * 1024, kTaskBytes = 160 * 1024;

// Columns whose parts of w and grad_w take about `bytes`: at least 64, and whole panels.
template <class T>
inline int64_t columns_within(int64_t bytes, int64_t K) {
  const int64_t columns = bytes / (2 * K * static_cast<int64_t>(sizeof(T))) / 64 * 64;
  return columns < 64 ? 64 : columns;
}

// What rows pull at a time.
template <class T>
inline int64_t tile_columns(const Problem& p) {
  const int64_t columns = columns_within<T>(kTileBytes, p.K());
  const int64_t most = columns < 512 ? columns : 512;
  return most < p.D ? most : p.D;
}

// Whether a chunk can go through forward and backward block by block: prototypes, their gradient
// and a block of rows share what a thread has of the caches. Longer rows would leave it to each of
// these in turn.
template <class T>
inline bool fits_one_pass(const Problem& p) {
  constexpr int64_t kRowBytes = 4096, kPrototypeBytes = 128 * 1024;
  const int64_t row = p.D * static_cast<int64_t>(sizeof(T));
  return row <= kRowBytes && p.K() * row <= kPrototypeBytes;
}

template <class T>
class FewGradients {
 public:
  FewGradients(const Problem& p, const UpstreamView& upstream, const T* saved,
               const PrototypePanels<T>& prototypes, void* grad_features, void* grad_prototypes)
      : p_(p),
        upstream_(upstream),
        layout_{p.B, p.K()},
        saved_(saved),
        prototypes_(prototypes),
        grad_features_(grad_features),
        grad_prototypes_(grad_prototypes),
        direct_(p.features.dtype == dtype_of<T>()),
        chunks_(chunks_of(p)),
        chunk_rows_(p.B > 0 ? (p.B + chunks_ - 1) / chunks_ : 0),
        chunk_sums_(padded(p.D) * p.K()),
        sums_(grad_prototypes ? chunks_ * chunk_sums_ : 0),
        slopes_(chunks_) {}

  // A power of two of chunks, of so many rows that reading their sums costs little beside reading
  // the rows. In one pass they are all that threads share; else long rows are cut into tasks too.
  static int64_t chunks_of(const Problem& p) {
    const bool one_pass = fits_one_pass<T>(p);
    const int64_t rows = one_pass ? 32 : 128, least = 3 * p.K() > rows ? 3 * p.K() : rows;
    const int64_t most = one_pass ? kMostChunks : kMostChunks / ((p.D + 511) / 512);
    int64_t chunks = 1;
    while (2 * chunks <= most && p.B / (2 * chunks) >= least) chunks *= 2;
    return chunks;
  }

  // Columns that a task of the backward takes of a chunk: as many as its share of the caches holds,
  // for long runs of the features' rows, but no more than leave two tasks for every thread.
  int64_t task_columns(int64_t threads) const {
    const int64_t most = columns_within<T>(kTaskBytes, p_.K()), wanted = 2 * threads;
    int64_t tasks = (p_.D + most - 1) / most;
    if (tasks * chunks_ < wanted) tasks = (wanted + chunks_ - 1) / chunks_;
    const int64_t columns = ((p_.D + tasks - 1) / tasks + 63) / 64 * 64;
    const int64_t least = tile_columns<T>(p_);
    return columns < least ? least : (columns < p_.D ? columns : p_.D);
  }

  int64_t chunks() const { return chunks_; }
  int64_t chunk_rows() const { return chunk_rows_; }
  int64_t first_row(int64_t chunk) const {
    return chunk * chunk_rows_ < p_.B ? chunk * chunk_rows_ : p_.B;
  }

  // What a thread needs for `columns` columns of a chunk. Its sums are the thread's own until the
  // chunk ends.
  struct Worker {
    Worker(const FewGradients& all, int64_t columns)
        : tile(tile_columns<T>(all.p_)),
          e(kBlockRows * all.p_.K()),
          out(kPullRows * tile),
          finite(kPullRows * tile),
          sums(all.grad_prototypes_ ? all.p_.K() * padded(columns) : 0),
          wide(all.widens() ? all.p_.K() * padded(columns) : 0),
          columns(columns) {}
    const int64_t tile;             // columns that rows pull at a time
    Scratch<T> e;                   // [groups of kPullRows rows, K, kPullRows]
    Scratch<T> out, finite;         // [kPullRows, tile]
    Scratch<T> sums;                // [panels, K, kPanel]
    Scratch<double> wide;           // [panels, K, kPanel]
    const int64_t columns;          // of all its tiles
    int64_t chunk = 0, column = 0;  // at hand, and the first column of it
    bool pulls[kBlockRows];
    int64_t pulling[kBlockRows / kPullRows];  // rows of a group that pull at all
    int64_t pending = 0;                      // rows that are in sums but not in wide
  };

  // A chunk's sums of the columns [column, column + worker.columns) begin.
  void begin_chunk(int64_t chunk, int64_t column, Worker& worker) {
    worker.chunk = chunk;
    worker.column = column;
    worker.pending = 0;
    if (column == 0) slopes_[chunk] = 0.0;
    if (grad_prototypes_ == nullptr) return;
    const int64_t n = sums_from(column, worker.columns);
    for (int64_t d = 0; d < n; ++d) worker.sums[d] = T{0};
    for (int64_t d = 0; widens() && d < n; ++d) worker.wide[d] = 0.0;
  }

  // e = g c for a block of rows: the first of a chunk, or those after the block before.
  void begin_block(int64_t first, int64_t rows, Worker& worker) const {
    const int64_t K = p_.K();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t group = r / kPullRows;
      T* const e = worker.e.get() + group * K * kPullRows + r % kPullRows;
      if (r % kPullRows == 0) worker.pulling[group] = 0;
      const T* c = saved_ + (first + r) * layout_.stride();
      const bool ignored = p_.target_at(first + r) == p_.ignore_index;
      const T g = ignored ? T{0} : static_cast<T>(upstream_.at(first + r));
      T sum{0};  // of magnitudes: NaN is not 0 either
      for (int64_t k = 0; k < K; ++k) {
        const T value = ignored ? T{0} : g * c[k];
        e[k * kPullRows] = value;
        sum += value < T{0} ? -value : value;
      }
      const bool any = sum != T{0};
      worker.pulls[r] = any;
      worker.pulling[group] += any;
    }
  }

  // Columns of a block: f [rows, columns] at stride ldf, from `column` on. kFetches: f was not read
  // just now.
  template <bool kFetches>
  void pull_columns(int64_t first, int64_t rows, const T* f, int64_t ldf, int64_t column,
                    int64_t columns, Worker& worker) {
    for (int64_t c = 0; c < columns; c += worker.tile) {
      const int64_t n = columns - c < worker.tile ? columns - c : worker.tile;
      for (int64_t r = 0; r < rows; r += kPullRows)
        pull_group<kFetches>(first + r, rows - r < kPullRows ? rows - r : kPullRows,
                             f + r * ldf + c, ldf, column + c, n, r, worker);
    }
  }

  // After all columns of a block.
  void end_block(int64_t first, int64_t rows, Worker& worker) {
    if (worker.column == 0)
      for (int64_t i = first; i < first + rows && p_.has_diversity(); ++i)
        if (p_.target_at(i) != p_.ignore_index)
          slopes_[worker.chunk] += upstream_.at(i) * saved_[i * layout_.stride() + p_.K()];
    worker.pending += rows;
    if (widens() && worker.pending >= kFlushRows) flush(worker);
  }

  void end_chunk(Worker& worker) {
    if (grad_prototypes_ == nullptr) return;
    if (widens()) flush(worker);
    const int64_t n = sums_from(worker.column, worker.columns);
    T* const sums = sums_of(worker.chunk, worker.column);
    for (int64_t d = 0; d < n; ++d)
      sums[d] = widens() ? static_cast<T>(worker.wide[d]) : worker.sums[d];
  }

  // After all chunks: adds them in order, then the diversity term.
  void finish(const Runtime& runtime) {
    if (grad_prototypes_ == nullptr) return;
    double slope = 0.0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) slope += slopes_[chunk];
    const int64_t K = p_.K(), groups = (K + kPullRows - 1) / kPullRows;
    // The diversity term pulls prototypes towards each other as the loss pulls rows: sum_k E_jk
    // (w_j - w_k) is the gradient of a row w_j with coefficients -E_jk.
    Scratch<T> e(p_.has_diversity() ? groups * K * kPullRows : 0);
    for (int64_t j = 0; j < K && p_.has_diversity(); ++j)
      for (int64_t k = 0; k < K; ++k)
        e[j / kPullRows * K * kPullRows + k * kPullRows + j % kPullRows] =
            static_cast<T>(-slope * saved_[layout_.pairs_offset() + j * layout_.stride() + k]);
    // A term of the sum in double costs as much as some multiply-adds.
    parallel(runtime, panels_of<T>(p_.D), (4 * chunks_ + 2 * K) * K * kPanel<T>,
             [&](int64_t begin, int64_t end) {
               Scratch<T> out(K * kPanel<T>);
               Scratch<double> sum(K * kPanel<T>);
               for (int64_t panel = begin; panel < end; ++panel)
                 finish_panel(panel * kPanel<T>, e.get(), out.get(), sum.get());
             });
  }

 private:
  int64_t columns_from(int64_t column, int64_t most) const {
    return p_.D - column < most ? p_.D - column : most;
  }
  static int64_t padded(int64_t columns) { return panels_of<T>(columns) * kPanel<T>; }
  // Elements of the panels from a column on.
  int64_t sums_from(int64_t column, int64_t most) const {
    return padded(columns_from(column, most)) * p_.K();
  }
  T* sums_of(int64_t chunk, int64_t column) {
    return sums_.get() + chunk * chunk_sums_ + column * p_.K();
  }
  bool widens() const { return grad_prototypes_ != nullptr && chunk_rows_ > kFlushRows; }

  static void clear(T* out, int64_t n) {
    __builtin_memset(out, 0, static_cast<size_t>(n) * sizeof(T));
  }

  // Rows [i, i + rows) of a block, `r` after its first.
  template <bool kFetches>
  void pull_group(int64_t i, int64_t rows, const T* f, int64_t ldf, int64_t column, int64_t n,
                  int64_t r, Worker& worker) {
    const int64_t K = p_.K(), D = p_.D, pulling = worker.pulling[r / kPullRows];
    T* const gf =
        grad_features_ == nullptr
            ? nullptr
            : (direct_ ? static_cast<T*>(grad_features_) + i * D + column : worker.out.get());
    const int64_t ldgf = direct_ ? D : n;
    if (pulling > 0) {
      if (pulling < rows) {  // 0 times what a row without a gradient holds may be NaN
        for (int64_t q = 0; q < rows; ++q)
          for (int64_t d = 0; d < n; ++d)
            worker.finite[q * n + d] = worker.pulls[r + q] ? f[q * ldf + d] : T{0};
        f = worker.finite.get();
        ldf = n;
      }
      const T* const e = worker.e.get() + r * K;
      const T* const w = prototypes_.from_column(column);
      T* const gw = worker.sums.get() + (column - worker.column) * K;
      if (gf != nullptr && grad_prototypes_ != nullptr)
        pull_rows<T, Pull{true, true, kFetches}>(rows, f, ldf, e, w, K, n, gf, ldgf, gw);
      else if (gf != nullptr)
        pull_rows<T, Pull{true, false, kFetches}>(rows, f, ldf, e, w, K, n, gf, ldgf, nullptr);
      else if (grad_prototypes_ != nullptr)
        pull_rows<T, Pull{false, true, kFetches}>(rows, f, ldf, e, w, K, n, nullptr, 0, gw);
      if (gf != nullptr && pulling < rows)  // nor must a prototype that is NaN reach such a row
        for (int64_t q = 0; q < rows; ++q)
          if (!worker.pulls[r + q]) clear(gf + q * ldgf, n);
    } else if (gf != nullptr) {
      // An inactive or ignored row has only zeros, whatever it holds, and its gradient is exactly
      // 0.
      for (int64_t q = 0; q < rows; ++q) clear(gf + q * ldgf, n);
    }
    if (gf != nullptr && !direct_)
      for (int64_t q = 0; q < rows; ++q)
        write_row(grad_features_, p_.features.dtype, (i + q) * D + column, n, gf + q * ldgf);
  }

  void flush(Worker& worker) {
    const int64_t n = sums_from(worker.column, worker.columns);
    for (int64_t d = 0; d < n; ++d) {
      worker.wide[d] += worker.sums[d];
      worker.sums[d] = T{0};
    }
    worker.pending = 0;
  }

  // A panel of the prototypes' gradient: e [groups, K, kPullRows] of the diversity term; out, sum
  // [K, kPanel].
  void finish_panel(int64_t column, const T* e, T* out, double* sum) {
    constexpr int64_t N = kPanel<T>;
    const int64_t K = p_.K(), n = columns_from(column, N);
    const T* const w = prototypes_.from_column(column);
    for (int64_t j = 0; j < K && p_.has_diversity(); j += kPullRows)
      pull_rows<T, Pull{true, false, false}>(K - j < kPullRows ? K - j : kPullRows, w + j * N, N,
                                             e + j * K, w, K, N, out + j * N, N, nullptr);
    for (int64_t d = 0; d < K * N; ++d) sum[d] = 0.0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const T* const sums = sums_of(chunk, column);
      for (int64_t d = 0; d < K * N; ++d) sum[d] += sums[d];
    }
    for (int64_t d = 0; d < K * N; ++d)
      out[d] = static_cast<T>(p_.has_diversity() ? sum[d] + out[d] : sum[d]);
    for (int64_t k = 0; k < K; ++k)
      write_row(grad_prototypes_, p_.prototypes_dtype, k * p_.D + column, n, out + k * N);
  }

  const Problem& p_;
  const UpstreamView& upstream_;
  const FewLayout layout_;
  const T* saved_;
  const PrototypePanels<T>& prototypes_;
  void* grad_features_;
  void* grad_prototypes_;
  const bool direct_;
  const int64_t chunks_, chunk_rows_, chunk_sums_;
  Scratch<T> sums_;         // [chunks, panels, K, kPanel]
  Scratch<double> slopes_;  // G of each chunk
};

}  // namespace CFAL_ISA
}  // namespace cfal
