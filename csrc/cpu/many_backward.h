// Many prototypes, backward, chunk of rows by chunk of rows. With v_i = g_i u_i, o_i = g_i c_i,y
// and the active affinities A,
//   grad_f_i = v_i (sum_j A_ij w_j - (sum_j A_ij) f_i) - o_i (f_i - w_y)
//   grad_w_j = sum_i v_i A_ij f_i - (sum_i v_i A_ij) w_j + sum_{y_i = j} o_i (f_i - w_j) + G
//   dR/dw_j,   G = sum_i g_i dl_i/dR.
// Features and prototypes are taken about the prototypes' mean where that saves digits. Near pairs
// go by their differences: A_ij (w_j - f_i) in grad_f_i, v_i A_ij (f_i - w_j) in grad_w_j.
#pragma once

#include <optional>

#include "many_chunk.h"
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
    double diversity_slope = 0.0;
    for (int64_t first = 0; first < p_.B;) {
      const bool is_kept = first < kept;
      const int64_t end = is_kept ? kept : p_.B, rows = end - first < chunk_ ? end - first : chunk_;
      const T* active = saved_ + first * K;
      const T* state = saved_ + layout_.row_state_offset() + first * ManyLayout::kRowState;
      if (!is_kept) {
        recompute(runtime, first, rows, recomputed.get(), recomputed_state.get());
        active = recomputed.get();
        state = recomputed_state.get();
      }
      const Chunk chunk(p_, runtime, block_, first, rows, active, state);
      for (int64_t r = 0; r < rows; ++r)
        if (p_.target_at(first + r) != p_.ignore_index)
          diversity_slope += upstream_.at(first + r) * chunk.state(r)[kDiversity];
      first += rows;
      add_gradients(runtime, chunk, diversity_slope);
    }
    if (!in_place_) write_row(grad_prototypes_, p_.prototypes_dtype, 0, K * D, grad_);
  }

 private:
  using Chunk = ManyChunk<T>;
  static constexpr int64_t kTile = Chunk::kTile;
  static constexpr int64_t kLeastRows = 128;  // of a product that still is efficient

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
    const int64_t blocks = grad_features_ ? chunk.blocks() : 0,
                  tiles = grad_prototypes_ ? chunk.tiles() : 0;
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
        if (last) subtract_column_sums(tile, chunk.tile_width(tile), grad);
        if (of_diversity && of_diversity->has_rows())
          of_diversity->add_rows(tile * kTile, chunk.tile_width(tile), grad);
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
    const int64_t r0 = block * block_ + begin, left = chunk.row_end(block) - r0,
                  n = left < most ? left : most, i0 = chunk.first + r0;
    if (n <= 0) return;
    T* out = in_place ? static_cast<T*>(grad_features_) + i0 * D : converted.get();
    bool written = false;
    for (int64_t tile = 0; tile < chunk.tiles();)
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
    const int64_t D = p_.D;
    if (chunk.entries(block, tile) == 0) return tile + 1;
    Scratch<T> copy;
    int64_t ld;
    const T* const a = chunk.far(block, r0, n, tile, copy, ld);
    if (chunk.is_dense(block, tile)) {
      int64_t last = tile + 1;
      if (!geometry_->centred && !chunk.has_near(block))
        while (last < chunk.tiles() && chunk.is_dense(block, last)) ++last;
      const int64_t width = (last - 1 - tile) * kTile + chunk.tile_width(last - 1);
      const T* w = geometry_->prototypes.row(tile * kTile);
      if (geometry_->centred) {
        geometry_->centre(w, D, width, centred);
        w = centred;
      }
      gemm(runtime, false, false, n, D, width, 1.0, a, ld, w, D, written ? 1.0 : 0.0, out, D);
      written = true;
      return last;
    }
    if (!written) clear(out, n * D);
    written = true;
    for (int64_t r = 0; r < n; ++r)
      for (int64_t k = 0; k < chunk.tile_width(tile); ++k) {
        const T value = a[r * ld + k];
        if (value == T{0}) continue;
        for (int64_t d = 0; d < D; ++d) out[r * D + d] += value * prototype_at(tile * kTile + k, d);
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
    const T* state = chunk.state(r);
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
    chunk.each_near(r, 0, p_.K(), [&](int64_t k, T a) {
      const T* const near = geometry_->prototypes.row(k);
      for (int64_t d = 0; d < D; ++d) out[d] += v * a * (near[d] - f[d]);
    });
  }

  // slope [rows] = v, pulled_ [rows, D] = v f.
  void pull_features(const Runtime& runtime, const Chunk& chunk, T* slope) {
    const int64_t D = p_.D;
    parallel(runtime, chunk.rows, D, [&](int64_t begin, int64_t end) {
      FeatureRows<T> features(p_, 1, D);
      bool empty = false;  // the block of rows at hand
      for (int64_t r = begin; r < end; ++r) {
        const int64_t i = chunk.first + r;
        const T v = static_cast<T>(upstream_of(i) * chunk.state(r)[kSlope]);
        slope[r] = v;
        if (r == begin || r % block_ == 0) empty = chunk.is_empty(r / block_);
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
    const int64_t blocks = chunk.blocks();
    FeatureRows<T> features(p_, 1, p_.D);
    bool written = chunk.first > 0;
    for (int64_t block = 0; block < blocks;)
      block = push_blocks(runtime, chunk, tile, block, blocks, slope, grad, written);
    if (!written) clear(grad, chunk.tile_width(tile) * p_.D);
    for (int64_t r = 0; r < chunk.rows; ++r) {
      push_own(chunk, r, tile, features, grad);
      if (slope[r] != T{0}) push_near(chunk, r, tile, slope[r], features, grad);
    }
  }

  // grad [tile, D] += A^T (v f) over the row blocks from `block` on that can go together; returns
  // the block after them. `written` as above.
  int64_t push_blocks(const Runtime& runtime, const Chunk& chunk, int64_t tile, int64_t block,
                      int64_t blocks, const T* slope, T* grad, bool& written) {
    const int64_t D = p_.D, width = chunk.tile_width(tile);
    if (chunk.entries(block, tile) == 0) return block + 1;
    int64_t last = block + 1;
    const bool dense = chunk.is_dense(block, tile);
    if (dense && !chunk.has_near(block))
      while (last < blocks && chunk.is_dense(last, tile) && !chunk.has_near(last)) ++last;
    const int64_t r0 = block * block_, r1 = chunk.row_end(last - 1);
    Scratch<T> copy;
    int64_t ld;
    const T* const a = chunk.far(block, r0, r1 - r0, tile, copy, ld);
    if (dense)
      gemm(runtime, true, false, width, D, r1 - r0, 1.0, a, ld, pulled_.get() + r0 * D, D,
           written ? 1.0 : 0.0, grad, D);
    else if (!written)
      clear(grad, width * D);
    written = true;
    for (int64_t b = block; b < last; ++b)
      add_column_sums(a + (b - block) * block_ * ld, ld, chunk.row_end(b) - b * block_,
                      slope + b * block_, width, column_sum_.get() + tile * kTile);
    if (dense) return last;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t k = 0; k < width; ++k) {
        const T value = a[(r - r0) * ld + k];
        if (value == T{0}) continue;
        const T* pulled = pulled_.get() + r * D;
        for (int64_t d = 0; d < D; ++d) grad[k * D + d] += value * pulled[d];
      }
    return last;
  }

  // sums [width] += v^T a of the rows of a block: a [rows, width] at stride ld, v [rows].
  static void add_column_sums(const T* a, int64_t ld, int64_t rows, const T* v, int64_t width,
                              double* sums) {
    T sum[kTile] = {};
    int64_t r = 0;
    // Four rows at a time: each may start a new page, which a processor does not fetch ahead.
    for (; r + 4 <= rows; r += 4, a += 4 * ld, v += 4) {
      const T *b = a + ld, *c = b + ld, *d = c + ld;
      for (int64_t k = 0; k < width; ++k)
        sum[k] += (v[0] * a[k] + v[1] * b[k]) + (v[2] * c[k] + v[3] * d[k]);
    }
    for (; r < rows; ++r, a += ld, ++v)
      for (int64_t k = 0; k < width; ++k) sum[k] += v[0] * a[k];
    for (int64_t k = 0; k < width; ++k) sums[k] += sum[k];
  }

  // After the last row: grad_w_j -= (sum_i v_i A_ij) w_j.
  void subtract_column_sums(int64_t tile, int64_t width, T* grad) const {
    const int64_t D = p_.D;
    for (int64_t k = 0; k < width; ++k) {
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
    const T* state = chunk.state(r);
    const int64_t k = y * p_.M + static_cast<int64_t>(state[kOwnCentre]) - tile * kTile;
    if (k < 0 || k >= chunk.tile_width(tile)) return;
    const T own = static_cast<T>(upstream_.at(i) * state[kOwn]);
    if (own == T{0}) return;
    const T *f = features.rows(i, 1, 0, D), *w = geometry_->prototypes.row(tile * kTile + k);
    for (int64_t d = 0; d < D; ++d) grad[k * D + d] += own * (f[d] - w[d]);
  }

  // The row's near prototypes that lie in the tile: grad_w_j += v_i A_ij (f_i - w_j).
  void push_near(const Chunk& chunk, int64_t r, int64_t tile, T v, FeatureRows<T>& features,
                 T* grad) {
    const int64_t D = p_.D, first = tile * kTile;
    chunk.each_near(r, first, first + chunk.tile_width(tile), [&](int64_t k, T a) {
      const T *f = features.rows(chunk.first + r, 1, 0, D), *w = geometry_->prototypes.row(k);
      for (int64_t d = 0; d < D; ++d) grad[(k - first) * D + d] += v * a * (f[d] - w[d]);
    });
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
  int64_t chunk_;
  bool in_place_ = true;
  T* grad_ = nullptr;           // [K, D]
  Scratch<T> converted_;        // grad_ where the prototypes are not of type T
  Scratch<double> column_sum_;  // [K] sum_i v_i A_ij
  Scratch<T> pulled_;           // [chunk, D] v_i f_i
};

}  // namespace CFAL_ISA
}  // namespace cfal
