// Many prototypes, backward, chunk of rows by chunk of rows. With v_i = g_i u_i, o_i = g_i c_i,y
// and the active affinities A,
//   grad_f_i = v_i (sum_j A_ij w_j - (sum_j A_ij) f_i) - o_i (f_i - w_y)
//   grad_w_j = sum_i v_i A_ij f_i - (sum_i v_i A_ij) w_j + sum_{y_i = j} o_i (f_i - w_j) + G
//   dR/dw_j,   G = sum_i g_i dl_i/dR.
// Features and prototypes are taken about the prototypes' mean where that saves digits. Tiles of A
// that are all 0 are left out, tiles with few entries go entry by entry, the others through matrix
// products.
#pragma once

#include <optional>

#include "many_forward.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
class ManyBackward {
 public:
  ManyBackward(const Problem& p, int64_t counted_rows, const UpstreamView& upstream, const T* saved,
               void* grad_features, void* grad_prototypes)
      : p_(p),
        counted_rows_(counted_rows),
        upstream_(upstream),
        layout_{p.B, p.K(), p.D},
        block_(layout_.block_rows()),
        saved_(saved),
        grad_features_(grad_features),
        grad_prototypes_(grad_prototypes) {
    const int64_t widest = p.K() > p.D ? p.K() : p.D, block = block_;
    const int64_t fit = kChunkBudget / widest / block * block;
    chunk_ = fit < block ? block : (fit > 1024 ? 1024 : fit);
    if (chunk_ > p.B) chunk_ = p.B;
    tiles_ = (p.K() + kTile - 1) / kTile;
  }

  void run(const Runtime& runtime) {
    const int64_t K = p_.K(), D = p_.D, kept = layout_.kept_rows();
    ManyGeometry<T> geometry(p_, runtime, kept < p_.B);
    geometry.centred = saved_[layout_.scalars_offset() + 2] != T{0};
    geometry_ = &geometry;
    prepare_prototypes();
    Scratch<T> recomputed(kept < p_.B ? chunk_ * K : 0),
        recomputed_state(chunk_ * ManyLayout::kRowState);
    pulled_.resize(chunk_ * D);
    fill_.resize(((chunk_ + block_ - 1) / block_) * tiles_);
    double diversity_slope = 0.0;
    for (int64_t first = 0; first < p_.B;) {
      const bool is_kept = first < kept;
      const int64_t end = is_kept ? kept : p_.B, rows = end - first < chunk_ ? end - first : chunk_;
      Chunk chunk{first, rows, saved_ + first * K,
                  saved_ + layout_.row_state_offset() + first * ManyLayout::kRowState};
      if (!is_kept) {
        recompute(runtime, first, rows, recomputed.get(), recomputed_state.get());
        chunk.active = recomputed.get();
        chunk.state = recomputed_state.get();
      }
      for (int64_t r = 0; r < rows; ++r)
        if (p_.target_at(first + r) != p_.ignore_index)
          diversity_slope +=
              upstream_.at(first + r) * chunk.state[r * ManyLayout::kRowState + kDiversity];
      count_entries(runtime, chunk);
      first += rows;
      add_gradients(runtime, chunk, diversity_slope);
    }
    if (!in_place_) write_row(grad_prototypes_, p_.prototypes_dtype, 0, K * D, grad_);
  }

 private:
  static constexpr int64_t kTile = 256;       // prototypes of one tile
  static constexpr int64_t kLeastRows = 128;  // of a product that still is efficient
  static constexpr int64_t kSparseShare =
      16;  // a tile with fewer than 1 / 16 of its entries goes entry by entry

  struct Chunk {
    int64_t first, rows;
    const T* active;  // [rows, K]
    const T* state;   // [rows, kRowState]
  };

  void prepare_prototypes() {
    const int64_t K = p_.K(), D = p_.D;
    if (grad_prototypes_ == nullptr) return;
    in_place_ = p_.prototypes_dtype == dtype_of<T>();
    if (!in_place_) converted_.resize(K * D);
    grad_ = in_place_ ? static_cast<T*>(grad_prototypes_) : converted_.get();
    column_sum_.resize(K);
    if (p_.B == 0) __builtin_memset(grad_, 0, static_cast<size_t>(K * D) * sizeof(T));
    for (int64_t k = 0; k < K; ++k) column_sum_[k] = 0.0;
  }

  void recompute(const Runtime& runtime, int64_t first, int64_t rows, T* active, T* state) {
    const int64_t K = p_.K(), block = block_;
    const double R =
        p_.has_diversity() ? static_cast<double>(saved_[layout_.scalars_offset()]) : 0.0;
    const RowConstants shared = row_constants(p_, counted_rows_, R);
    parallel_products(runtime, (rows + block - 1) / block, [&](TaskQueue& queue) {
      ManyRows<T> worker(p_, runtime, *geometry_, block);
      Scratch<RowAtHand> at_hand(block);
      for (int64_t task; queue.take(task);) {
        const int64_t r = task * block, n = rows - r < block ? rows - r : block;
        worker.run(first + r, n, active + r * K, at_hand.get());
        for (int64_t i = 0; i < n; ++i)
          finish_row(p_, shared, at_hand[i], state + (r + i) * ManyLayout::kRowState);
      }
    });
  }

  // fill_ [row blocks, tiles]: entries that are not 0 (a NaN is one), counted until they are enough
  // for a dense tile.
  void count_entries(const Runtime& runtime, const Chunk& chunk) {
    const int64_t K = p_.K(), blocks = (chunk.rows + block_ - 1) / block_;
    parallel(runtime, blocks, block_ * K / 8, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for (int64_t tile = 0; tile < tiles_; ++tile) {
          const int64_t last = row_end(chunk, block), n = tile_width(tile);
          int64_t count = 0;
          for (int64_t r = block * block_; r < last && !makes_dense(count); ++r) {
            // The sum of a row's entries, none of them negative: it is 0 where all are.
            if (chunk.state[r * ManyLayout::kRowState + kActiveSum] == T{0}) continue;
            const T* a = chunk.active + r * K + tile * kTile;
            int32_t in_row = 0;
            for (int64_t k = 0; k < n; ++k) in_row += a[k] != T{0};
            count += in_row;
          }
          fill_[block * tiles_ + tile] = count;
        }
    });
  }

  int64_t row_end(const Chunk& chunk, int64_t block) const {
    return chunk.rows < (block + 1) * block_ ? chunk.rows : (block + 1) * block_;
  }
  int64_t tile_width(int64_t tile) const {
    return p_.K() - tile * kTile < kTile ? p_.K() - tile * kTile : kTile;
  }
  bool makes_dense(int64_t entries) const { return entries * kSparseShare >= block_ * kTile; }
  bool is_dense(int64_t block, int64_t tile) const {
    return makes_dense(fill_[block * tiles_ + tile]);
  }

  // Whether no row of the block has an entry at all.
  bool is_empty(int64_t block) const {
    for (int64_t tile = 0; tile < tiles_; ++tile)
      if (fill_[block * tiles_ + tile] != 0) return false;
    return true;
  }

  // The prototype as the products see it: about the mean if the geometry says so.
  T prototype_at(int64_t k, int64_t d) const {
    return geometry_->centred ? static_cast<T>(geometry_->prototypes.row(k)[d] - geometry_->mean[d])
                              : geometry_->prototypes.row(k)[d];
  }

  static void clear(T* out, int64_t n) {
    __builtin_memset(out, 0, static_cast<size_t>(n) * sizeof(T));
  }

  double upstream_of(int64_t i) const {
    return p_.target_at(i) == p_.ignore_index ? 0.0 : upstream_.at(i);
  }

  // Both gradients of a chunk in one parallel region: a thread that is slow at one part of them
  // holds up nothing but the end. `diversity_slope`: of all rows up to here.
  void add_gradients(const Runtime& runtime, const Chunk& chunk, double diversity_slope) {
    using Diversity = ManyDiversity<T>;
    static_assert(kTile <= Diversity::kRows);
    const int64_t blocks = grad_features_ ? (chunk.rows + block_ - 1) / block_ : 0,
                  tiles = grad_prototypes_ ? tiles_ : 0;
    const bool last = chunk.first + chunk.rows == p_.B;
    Scratch<T> slope(chunk.rows);
    if (tiles > 0) pull_features(runtime, chunk, slope.get());
    const Diversity diversity(p_, runtime, *geometry_);
    std::optional<typename Diversity::Gradient> of_diversity;
    if (tiles > 0 && last && p_.has_diversity() && diversity_slope != 0.0)
      of_diversity.emplace(diversity, diversity_slope,
                           static_cast<double>(saved_[layout_.scalars_offset() + 1]),
                           layout_.keeps_matrix() ? saved_ + layout_.matrix_offset() : nullptr);
    // The larger tasks first. Where blocks are the smaller ones, and large enough for a product of
    // half of one, those of the second half are cut in two, so that threads end at about one time.
    const bool tiles_first = kTile * chunk.rows >= block_ * p_.K();
    const int64_t parts = tiles_first && block_ >= 2 * kLeastRows ? 2 : 1,
                  whole = parts == 1 ? blocks : blocks / 2,
                  pieces = whole + parts * (blocks - whole), rows = (block_ + parts - 1) / parts,
                  tile0 = tiles_first ? 0 : pieces, piece0 = tiles_first ? tiles : 0;
    parallel_products(runtime, tiles + pieces, [&](TaskQueue& queue) {
      for (int64_t task; queue.take(task);) {
        const int64_t tile = task - tile0, piece = task - piece0, cut = piece - whole;
        if (tile < 0 || tile >= tiles) {
          if (cut < 0)
            add_features(runtime, chunk, piece, 0, block_);
          else
            add_features(runtime, chunk, whole + cut / parts, cut % parts * rows, rows);
          continue;
        }
        T* const grad = grad_ + tile * kTile * p_.D;
        add_prototypes(runtime, chunk, tile, slope.get(), grad);
        if (last) subtract_column_sums(tile, grad);
        if (of_diversity && of_diversity->has_rows())
          of_diversity->add_rows(tile * kTile, tile_width(tile), grad);
      }
    });
    if (of_diversity && !of_diversity->has_rows()) of_diversity->add(grad_);
  }

  // The gradient of the features of a block, `most` rows from `begin` on, as far as it has them.
  void add_features(const Runtime& runtime, const Chunk& chunk, int64_t block, int64_t begin,
                    int64_t most) {
    const int64_t D = p_.D;
    const bool in_place = p_.features.dtype == dtype_of<T>();
    FeatureRows<T> features(p_, block_, D);
    Scratch<T> converted(in_place ? 0 : block_ * D), centred(geometry_->centred ? kTile * D : 0);
    const int64_t r0 = block * block_ + begin, left = row_end(chunk, block) - r0,
                  n = left < most ? left : most, i0 = chunk.first + r0;
    if (n <= 0) return;
    T* out = in_place ? static_cast<T*>(grad_features_) + i0 * D : converted.get();
    bool written = false;
    for (int64_t tile = 0; tile < tiles_;)
      tile = pull_tiles(runtime, chunk, block, tile, r0, n, centred.get(), out, written);
    if (!written) clear(out, n * D);
    const T* f = features.rows(i0, n, 0, D);
    for (int64_t r = 0; r < n; ++r) {
      finish_features(chunk, r0 + r, f + r * features.ld(), out + r * D);
      if (!in_place) write_row(grad_features_, p_.features.dtype, (i0 + r) * D, D, out + r * D);
    }
  }

  // out [n, D] += A w over the tiles from `tile` on that can go together; returns the tile after
  // them. `written` says whether out holds anything yet.
  int64_t pull_tiles(const Runtime& runtime, const Chunk& chunk, int64_t block, int64_t tile,
                     int64_t r0, int64_t n, T* centred, T* out, bool& written) {
    const int64_t K = p_.K(), D = p_.D;
    const T* a = chunk.active + r0 * K + tile * kTile;
    if (is_dense(block, tile)) {
      int64_t last = tile + 1;
      if (!geometry_->centred)
        while (last < tiles_ && is_dense(block, last)) ++last;
      const int64_t width = (last < tiles_ ? last * kTile : K) - tile * kTile;
      const T* w = geometry_->prototypes.row(tile * kTile);
      if (geometry_->centred) {
        geometry_->centre(w, D, width, centred);
        w = centred;
      }
      gemm(runtime, false, false, n, D, width, 1.0, a, K, w, D, written ? 1.0 : 0.0, out, D);
      written = true;
      return last;
    }
    if (fill_[block * tiles_ + tile] > 0) {
      if (!written) clear(out, n * D);
      written = true;
      for (int64_t r = 0; r < n; ++r)
        for (int64_t k = 0; k < tile_width(tile); ++k) {
          const T value = a[r * K + k];
          if (value == T{0}) continue;
          for (int64_t d = 0; d < D; ++d)
            out[r * D + d] += value * prototype_at(tile * kTile + k, d);
        }
    }
    return tile + 1;
  }

  // out holds sum_j A_ij w_j; turns it into grad_f_i.
  void finish_features(const Chunk& chunk, int64_t r, const T* f, T* out) const {
    const int64_t D = p_.D, i = chunk.first + r, y = p_.target_at(i);
    if (y == p_.ignore_index) {
      for (int64_t d = 0; d < D; ++d) out[d] = T{0};
      return;
    }
    const T* state = chunk.state + r * ManyLayout::kRowState;
    const double g = upstream_.at(i);
    const T v = static_cast<T>(g * state[kSlope]), own = static_cast<T>(g * state[kOwn]),
            total = state[kActiveSum];
    const T* w = geometry_->prototypes.row(y * p_.M + static_cast<int64_t>(state[kOwnCentre]));
    if (geometry_->centred)
      for (int64_t d = 0; d < D; ++d)
        out[d] =
            v * (out[d] - total * static_cast<T>(f[d] - geometry_->mean[d])) - own * (f[d] - w[d]);
    else
      for (int64_t d = 0; d < D; ++d) out[d] = v * (out[d] - total * f[d]) - own * (f[d] - w[d]);
  }

  // slope [rows] = v, pulled_ [rows, D] = v f.
  void pull_features(const Runtime& runtime, const Chunk& chunk, T* slope) {
    const int64_t D = p_.D;
    parallel(runtime, chunk.rows, D, [&](int64_t begin, int64_t end) {
      FeatureRows<T> features(p_, 1, D);
      bool empty = false;  // the block of rows at hand
      for (int64_t r = begin; r < end; ++r) {
        const int64_t i = chunk.first + r;
        const T v =
            static_cast<T>(upstream_of(i) * chunk.state[r * ManyLayout::kRowState + kSlope]);
        slope[r] = v;
        if (r == begin || r % block_ == 0) empty = is_empty(r / block_);
        if (empty) continue;
        T* const out = pulled_.get() + r * D;
        if (v == T{0}) {  // also an ignored row, whose features may be NaN
          for (int64_t d = 0; d < D; ++d) out[d] = T{0};
          continue;
        }
        const T* f = features.rows(i, 1, 0, D);
        if (geometry_->centred)
          for (int64_t d = 0; d < D; ++d) out[d] = v * static_cast<T>(f[d] - geometry_->mean[d]);
        else
          for (int64_t d = 0; d < D; ++d) out[d] = v * f[d];
      }
    });
  }

  // grad [tile, D] += what a chunk's rows are to a tile of prototypes.
  void add_prototypes(const Runtime& runtime, const Chunk& chunk, int64_t tile, const T* slope,
                      T* grad) {
    const int64_t blocks = (chunk.rows + block_ - 1) / block_;
    FeatureRows<T> features(p_, 1, p_.D);
    bool written = chunk.first > 0;
    for (int64_t block = 0; block < blocks;)
      block = push_blocks(runtime, chunk, tile, block, blocks, slope, grad, written);
    if (!written) clear(grad, tile_width(tile) * p_.D);
    for (int64_t r = 0; r < chunk.rows; ++r) push_own(chunk, r, tile, features, grad);
  }

  // grad [tile, D] += A^T (v f) over the row blocks from `block` on that can go together; returns
  // the block after them. `written` as above.
  int64_t push_blocks(const Runtime& runtime, const Chunk& chunk, int64_t tile, int64_t block,
                      int64_t blocks, const T* slope, T* grad, bool& written) {
    const int64_t K = p_.K(), D = p_.D, width = tile_width(tile);
    int64_t last = block + 1;
    const bool dense = is_dense(block, tile);
    if (dense)
      while (last < blocks && is_dense(last, tile)) ++last;
    const int64_t r0 = block * block_, r1 = row_end(chunk, last - 1);
    if (fill_[block * tiles_ + tile] == 0) return last;
    const T* a = chunk.active + tile * kTile;
    if (dense)
      gemm(runtime, true, false, width, D, r1 - r0, 1.0, a + r0 * K, K, pulled_.get() + r0 * D, D,
           written ? 1.0 : 0.0, grad, D);
    else if (!written)
      clear(grad, width * D);
    written = true;
    for (int64_t b = block; b < last; ++b) add_column_sums(chunk, tile, b, slope);
    if (dense) return last;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t k = 0; k < width; ++k) {
        const T value = a[r * K + k];
        if (value == T{0}) continue;
        const T* pulled = pulled_.get() + r * D;
        for (int64_t d = 0; d < D; ++d) grad[k * D + d] += value * pulled[d];
      }
    return last;
  }

  void add_column_sums(const Chunk& chunk, int64_t tile, int64_t block, const T* slope) {
    const int64_t width = tile_width(tile);
    T sum[kTile] = {};
    const int64_t K = p_.K(), end = row_end(chunk, block);
    int64_t r = block * block_;
    // Four rows at a time: each may start a new page, which a processor does not fetch ahead.
    for (; r + 4 <= end; r += 4) {
      const T *a = chunk.active + r * K + tile * kTile, *b = a + K, *c = b + K, *d = c + K;
      const T* v = slope + r;
      for (int64_t k = 0; k < width; ++k)
        sum[k] += (v[0] * a[k] + v[1] * b[k]) + (v[2] * c[k] + v[3] * d[k]);
    }
    for (; r < end; ++r) {
      const T* a = chunk.active + r * K + tile * kTile;
      for (int64_t k = 0; k < width; ++k) sum[k] += slope[r] * a[k];
    }
    for (int64_t k = 0; k < width; ++k) column_sum_[tile * kTile + k] += sum[k];
  }

  // After the last row: grad_w_j -= (sum_i v_i A_ij) w_j.
  void subtract_column_sums(int64_t tile, T* grad) const {
    const int64_t D = p_.D;
    for (int64_t k = 0; k < tile_width(tile); ++k) {
      const int64_t j = tile * kTile + k;
      if (column_sum_[j] == 0.0) continue;
      const T sum = static_cast<T>(column_sum_[j]);
      for (int64_t d = 0; d < D; ++d) grad[k * D + d] -= sum * prototype_at(j, d);
    }
  }

  // The row's own prototype, if it lies in the tile: grad_w_y += o_i (f_i - w_y).
  void push_own(const Chunk& chunk, int64_t r, int64_t tile, FeatureRows<T>& features, T* grad) {
    const int64_t D = p_.D, i = chunk.first + r, y = p_.target_at(i);
    if (y == p_.ignore_index) return;
    const T* state = chunk.state + r * ManyLayout::kRowState;
    const int64_t k = y * p_.M + static_cast<int64_t>(state[kOwnCentre]) - tile * kTile;
    if (k < 0 || k >= tile_width(tile)) return;
    const T own = static_cast<T>(upstream_.at(i) * state[kOwn]);
    if (own == T{0}) return;
    const T *f = features.rows(i, 1, 0, D), *w = geometry_->prototypes.row(tile * kTile + k);
    for (int64_t d = 0; d < D; ++d) grad[k * D + d] += own * (f[d] - w[d]);
  }

  const Problem& p_;
  const int64_t counted_rows_;
  const UpstreamView& upstream_;
  const ManyLayout layout_;
  const int64_t block_;  // rows of one task and of one tile
  const T* const saved_;
  void* const grad_features_;
  void* const grad_prototypes_;
  const ManyGeometry<T>* geometry_ = nullptr;
  int64_t chunk_, tiles_;
  bool in_place_ = true;
  T* grad_ = nullptr;           // [K, D]
  Scratch<T> converted_;        // grad_ where the prototypes are not of type T
  Scratch<double> column_sum_;  // [K] sum_i v_i A_ij
  Scratch<T> pulled_;           // [chunk, D] v_i f_i
  Scratch<int64_t> fill_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
