// Many prototypes, backward: a chunk of rows and its active affinities A, cut into tiles of a block
// of rows and kTile prototypes. A tile is left out, goes entry by entry, or through matrix
// products. Entries of near pairs (many_rows.h) go one by one in any case.
#pragma once

#include "many_rows.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
class ManyChunk {
 public:
  static constexpr int64_t kTile = 256;
  static constexpr int64_t kSparseShare =
      16;  // a tile with fewer than 1 / 16 of its entries goes entry by entry

  // Rows [first, first + rows): active [rows, K], state [rows, kRowState].
  ManyChunk(const Problem& p, const Runtime& runtime, int64_t block, int64_t first, int64_t rows,
            const T* active, const T* state)
      : first(first),
        rows(rows),
        K_(p.K()),
        block_(block),
        active_(active),
        state_(state),
        fill_(blocks() * tiles()),
        near_(blocks()) {
    parallel(runtime, blocks(), block_ * K_ / 8, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) count(b);
    });
  }

  int64_t blocks() const { return (rows + block_ - 1) / block_; }
  int64_t tiles() const { return (K_ + kTile - 1) / kTile; }
  int64_t row_end(int64_t block) const {
    return rows < (block + 1) * block_ ? rows : (block + 1) * block_;
  }
  int64_t tile_width(int64_t tile) const {
    return K_ - tile * kTile < kTile ? K_ - tile * kTile : kTile;
  }
  const T* state(int64_t r) const { return state_ + r * ManyLayout::kRowState; }

  // Entries that are not 0, near pairs aside; no more than makes a tile dense.
  int64_t entries(int64_t block, int64_t tile) const { return fill_[block * tiles() + tile]; }
  bool is_dense(int64_t block, int64_t tile) const { return makes_dense(entries(block, tile)); }

  // Whether no row of the block has such an entry.
  bool is_empty(int64_t block) const {
    for (int64_t tile = 0; tile < tiles(); ++tile)
      if (entries(block, tile) != 0) return false;
    return true;
  }

  bool has_near(int64_t block) const { return near_[block] != 0; }

  // A [n, width] without near pairs: rows r on, inside one block unless no block has near pairs,
  // and prototypes of one tile unless that block has none; ld is its stride, copy memory for it.
  const T* far(int64_t block, int64_t r, int64_t n, int64_t tile, Scratch<T>& copy,
               int64_t& ld) const {
    const T* const a = active_ + r * K_ + tile * kTile;
    ld = K_;
    if (!has_near(block)) return a;
    const int64_t width = tile_width(tile);
    copy.resize(n * width);
    ld = width;
    for (int64_t q = 0; q < n; ++q)
      for (int64_t k = 0; k < width; ++k) {
        const T value = a[q * K_ + k];
        copy[q * width + k] = value < T{0} ? T{0} : value;  // NaN stays
      }
    return copy.get();
  }

  // visit(k, A_rk) for the near pairs of row r and the prototypes [begin, end).
  template <class Visit>
  void each_near(int64_t r, int64_t begin, int64_t end, const Visit& visit) const {
    if (state(r)[kHasNear] == T{0}) return;
    const T* const a = active_ + r * K_;
    for (int64_t k = begin; k < end; ++k)
      if (a[k] < T{0}) visit(k, -a[k]);
  }

  const int64_t first, rows;

 private:
  bool makes_dense(int64_t entries) const { return entries * kSparseShare >= block_ * kTile; }

  void count(int64_t block) {
    near_[block] = 0;
    for (int64_t r = block * block_; r < row_end(block); ++r)
      near_[block] |= state(r)[kHasNear] != T{0};
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      const int64_t n = tile_width(tile);
      int64_t count = 0;
      for (int64_t r = block * block_; r < row_end(block) && !makes_dense(count); ++r) {
        // The sum of a row's entries, none of them negative: it is 0 where all are.
        if (state(r)[kActiveSum] == T{0}) continue;
        const T* a = active_ + r * K_ + tile * kTile;
        int32_t in_row = 0;
        for (int64_t k = 0; k < n; ++k) in_row += !(a[k] <= T{0});  // a NaN is one
        count += in_row;
      }
      fill_[block * tiles() + tile] = count;
    }
  }

  const int64_t K_, block_;
  const T *const active_, *const state_;
  Scratch<int64_t> fill_;  // [blocks, tiles]
  Scratch<int64_t> near_;  // [blocks]
};

}  // namespace CFAL_ISA
}  // namespace cfal
