// Layout of the one buffer that the forward saves and the backward reads, in elements of the
// compute type. Its length is a function of shapes alone, so that a fake kernel can state it
// (cfal_kernels/ops.py mirrors saved_numel).
#pragma once

#include <cstdint>

#include "host_device.h"
#include "problem.h"

namespace cfal {

// Memory that the many-prototype regime may use whatever the shape, in elements of the compute
// type.
constexpr int64_t kCacheBudget = int64_t{1}
                                 << 21;  // active affinities kept from forward to backward
constexpr int64_t kScratchBudget = int64_t{1} << 20;  // of a thread: affinities of the rows at hand
constexpr int64_t kPairsBudget = int64_t{1} << 20;  // [K, K] or [D, D] matrix of the diversity term
constexpr int64_t kChunkBudget = int64_t{1}
                                 << 21;  // affinities recomputed in the backward at a time

// Few prototypes: [B + K, K + 1]. Row i < B: coefficients c_i0 .. c_i,K-1, then dl_i/dR. Row B + j:
// the coefficients (4 / P) (D_jk - mu) of prototype j against prototype k: the diversity term pulls
// a prototype as a sample does.
struct FewLayout {
  int64_t B, K;
  CFAL_HOST_DEVICE int64_t stride() const { return K + 1; }
  CFAL_HOST_DEVICE int64_t numel() const { return (B + K) * stride(); }
  CFAL_HOST_DEVICE int64_t pairs_offset() const { return B * stride(); }
};

// Many prototypes: [kept rows, K] active affinities | [kept rows, kRowState] row state
// (many_rows.h) | R, mu, whether everything is taken about the mean | pair or moment matrix, if
// kept.
struct ManyLayout {
  static constexpr int64_t kRowState = 6;
  static constexpr int64_t kScalars = 3;
  int64_t B, K, D;

  // Rows of one matrix product: a quarter of the batch, so that a few threads can share it, within
  // [64, 256], where the product is efficient; fewer where K alone exhausts the scratch memory. A
  // function of the shape, so that results do not depend on the number of threads.
  int64_t block_rows() const {
    const int64_t quarter = B / 256 * 64;
    const int64_t wanted = quarter < 64 ? 64 : (quarter > 256 ? 256 : quarter);
    if (K * wanted <= kScratchBudget) return wanted;
    return K < kScratchBudget ? kScratchBudget / K : 1;
  }
  // A whole number of blocks, so that kept and recomputed rows fall into the same matrix products.
  int64_t kept_rows() const {
    const int64_t rows = kCacheBudget / K / block_rows() * block_rows();
    return rows < B ? rows : B;
  }
  // K <= D: differences of all pairs. K > D: the closed form on the D x D moment matrix, which
  // needs K > D to be free of cancellation.
  bool by_pairs() const { return K <= D; }
  int64_t matrix_side() const { return by_pairs() ? K : D; }
  bool keeps_matrix() const { return matrix_side() * matrix_side() <= kPairsBudget; }
  int64_t row_state_offset() const { return kept_rows() * K; }
  int64_t scalars_offset() const { return row_state_offset() + kept_rows() * kRowState; }
  int64_t matrix_offset() const { return scalars_offset() + kScalars; }
  int64_t numel() const {
    return matrix_offset() + (keeps_matrix() ? matrix_side() * matrix_side() : 0);
  }
};

inline int64_t saved_numel(const Problem& p) {
  return p.regime == Regime::kFew ? FewLayout{p.B, p.K()}.numel()
                                  : ManyLayout{p.B, p.K(), p.D}.numel();
}

}  // namespace cfal
