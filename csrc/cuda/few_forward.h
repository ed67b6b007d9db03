// Few prototypes, forward, in one launch: distances by direct differences, then for every row the
// loss and the coefficients
//   c_ij = (2 / sigma) a_ij dl_i/da_ij,   so that   dl_i/df_i = -sum_j c_ij (f_i - w_j),
//   dl_i/dw_j = c_ij (f_i - w_j).
// Unlike the CPU's, the coefficients do not hold the mean's 1 / N, which no block knows before all
// have finished: N lies in the last column of the first prototype's row of `saved`, and the
// backward divides.
#pragma once

#include "../core/saved.h"
#include "columns.h"
#include "pairs.h"
#include "plan.h"

namespace cfal::cuda {

struct ForwardArguments {
  Problem p;
  ForwardPlan plan;
  void* loss;         // [B] or one value, compute type
  void* saved;        // FewLayout, compute type, or null
  double* workspace;  // plan.workspace_doubles
  unsigned* tickets;  // kTickets zeros, which the launch leaves as zeros
};

// What the threads of a block share beyond the prototypes' slots.
template <class L>
struct ForwardShared {
  static constexpr int R = static_cast<int>(forward_rows(L::kAdjacent, L::V));  // rows of a warp
  static constexpr int kRows = R * kForwardWarps;  // rows of a block, at most
  static_assert(kRows <= kWarp);

  int target[kRows];  // -1: ignored, or beyond the batch
  double ratio[kRows], slack[kRows], hinge_slope[kRows], own[kRows], diversity_slope[kRows];
  uint8_t nearest[kRows * kMostPrototypes];  // centre within its class
  double total[kForwardWarps];
  bool last;
};

// What a non-finite distance means: NaN if either row holds a NaN or inf; otherwise T overflowed,
// and the sum is made again in double (which may overflow to inf in turn: the affinity is then
// exactly 0).
CFAL_DEVICE_CALL double repair_distance(const Problem& p, int64_t i, int64_t k) {
  double q = 0.0;
  bool finite = true;
  for (int64_t d = 0; d < p.D; ++d) {
    const double f =
        load_element<double>(p.features.data, p.features.dtype, feature_index(p, i, d));
    const double w =
        load_element<double>(p.prototypes, p.prototypes_dtype, prototype_index(p, k, d));
    finite = finite && f - f == 0.0 && w - w == 0.0;  // x - x is 0 for every finite x, else NaN
    q += (f - w) * (f - w);
  }
  return finite ? q : static_cast<double>(NAN);
}

template <class L>
class FewForward {
 public:
  using T = typename L::Compute;
  using Shared = ForwardShared<L>;
  static constexpr int R = Shared::R, V = L::V, Q = kQuad<T>,
                       G = static_cast<int>(pass_prototypes(sizeof(T)));

  CFAL_DEVICE FewForward(const ForwardArguments& a, Shared& shared, unsigned char* dynamic)
      : a_(a),
        p_(a.p),
        s_(shared),
        slots_(reinterpret_cast<T*>(dynamic)),
        sums_(reinterpret_cast<double*>(dynamic + a.plan.slots_bytes)),
        pairs_(a.plan.shares_pairs ? a.workspace + a.plan.sums_doubles
                                   : sums_ + a.plan.sums_bytes / 8),
        K_(static_cast<int>(a.p.K())),
        C_(static_cast<int>(a.p.C)),
        M_(static_cast<int>(a.p.M)),
        warps_per_row_(static_cast<int>(a.plan.warps_per_row)),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        warp_(static_cast<int>(threadIdx.x) / kWarp) {}

  CFAL_DEVICE void run() {
    const int pairs = static_cast<int>(a_.plan.pairs);
    if (a_.plan.shares_pairs)
      form_shared_pairs(p_, pairs, pairs_, a_.tickets, lane_);
    else
      form_own_pairs(p_, pairs, pairs_, warp_, lane_);

    PairStatistics diversity;
    bool pending = pairs > 0;  // waits as late as possible: the distances come first
    double loss = 0.0, counted = 0.0;
    const int64_t rows = a_.plan.block_rows;
    for (int64_t first = blockIdx.x * rows; first < p_.B; first += gridDim.x * rows) {
      const int here = static_cast<int>(p_.B - first < rows ? p_.B - first : rows);
      read_targets(first, here);
      form_distances(first);
      if (pending) diversity = wait_for_diversity(pairs);
      pending = false;
      __syncthreads();
      form_affinities(first, here);
      __syncthreads();
      finish_row(first, here, diversity.variance, loss, counted);
      __syncthreads();
      if (a_.saved != nullptr) write_coefficients(first, here);
      __syncthreads();
    }
    if (blockIdx.x == 0 && a_.saved != nullptr) {
      if (pending) diversity = wait_for_diversity(pairs);
      write_pair_coefficients(diversity.mean);
    }
    reduce(loss, counted);
  }

 private:
  CFAL_DEVICE PairStatistics wait_for_diversity(int pairs) {
    if (a_.plan.shares_pairs)
      wait_for_shared_pairs(pairs, a_.tickets);
    else
      __syncthreads();
    return pair_statistics(pairs_, pairs, a_.plan.shares_pairs, lane_);
  }

  CFAL_DEVICE void read_targets(int64_t first, int here) {
    const int row = static_cast<int>(threadIdx.x);
    if (row >= a_.plan.block_rows) return;
    int target = -1;
    if (row < here) {
      const int64_t y = p_.target_at(first + row);
      if (y != p_.ignore_index) {
        CFAL_DEVICE_ASSERT(y >= 0 && y < p_.C);
        target = y >= 0 && y < p_.C ? static_cast<int>(y) : -1;
      }
    }
    s_.target[row] = target;
  }

  // Sums of a warp: [R, K] in double. Warps that share rows hold sums over different columns.
  CFAL_DEVICE double* sums_of(int warp) { return sums_ + warp * R * K_; }

  // sums += squared differences of this warp's rows and columns, over all prototypes. Lanes add up
  // in T what one residence of the prototypes brings them, at most a few hundred columns; the rest
  // is added in double.
  CFAL_DEVICE void form_distances(int64_t first) {
    double* const sums = sums_of(warp_);
    for (int i = lane_; i < R * K_; i += kWarp) sums[i] = 0.0;
    __syncwarp();
    const int64_t row = first + warp_ / warps_per_row_ * R;
    for (int64_t begin = 0; begin < a_.plan.segments; begin += a_.plan.resident) {
      const int64_t left = a_.plan.segments - begin;
      const int64_t count = left < a_.plan.resident ? left : a_.plan.resident;
      if (staged_ != begin) {
        __syncthreads();
        stage_prototypes<L>(p_, begin, count, slots_);
        staged_ = begin;
        __syncthreads();
      }
      const int passes = (K_ + G - 1) / G;
      for (int pass = 0; pass < passes; ++pass) {
        const int k = pass * K_ / passes, n = (pass + 1) * K_ / passes - k;
        add_distances(row, begin, static_cast<int>(count), k, n, sums);
      }
    }
  }

  CFAL_DEVICE void add_distances(int64_t row, int64_t begin, int count, int first, int n,
                                 double* sums) {
    constexpr int kSums = (G * R + kWarp - 1) / kWarp * kWarp;
    T sum[kSums];  // [prototype, row]
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] = T{0};
    for (int segment = warp_ % warps_per_row_; segment < count; segment += warps_per_row_) {
      typename L::Row rows[R];
#pragma unroll
      for (int r = 0; r < R; ++r)
        rows[r] = row + r < p_.B ? L::load(p_, row + r, (begin + segment) * L::kSegment, lane_)
                                 : L::zeros();
      T* const slots = slots_ + (segment * K_ + first) * L::kSegment;
#pragma unroll
      for (int quad = 0; quad < V / Q; ++quad) {
        T f[R][Q];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int v = 0; v < Q; ++v) f[r][v] = L::value(rows[r], quad * Q + v);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          if (g < n) {
            const Packed<T, Q> w = quad_at(slots + g * L::kSegment, lane_, quad);
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
              for (int v = 0; v < Q; ++v) {
                const T difference = f[r][v] - w.element[v];
                sum[g * R + r] += difference * difference;
              }
          }
        }
      }
    }
    warp_sums<kSums>(sum, lane_);
    constexpr int kHeld = kSums / kWarp;  // sums that a lane holds now
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int g = (lane_ * kHeld + j) / R, r = (lane_ * kHeld + j) % R;
      if (g < n) sums[r * K_ + first + g] += static_cast<double>(sum[j]);
    }
  }

  // The affinity of row r to class j lies where the distances to the class began.
  CFAL_DEVICE double& affinity(int row, int j) {
    return sums_of(row / R * warps_per_row_)[row % R * K_ + j * M_];
  }

  // a_ij = exp(-q_ij / sigma) from the distances to the centres of class j; NaN if any is NaN.
  CFAL_DEVICE void form_affinities(int64_t first, int here) {
    const double scale = -1.0 / p_.sigma;
    for (int index = static_cast<int>(threadIdx.x); index < here * C_;
         index += static_cast<int>(blockDim.x)) {
      const int row = index / C_, j = index % C_;
      if (s_.target[row] < 0) continue;
      double best = 0.0;
      int nearest = 0;
      bool finite = true;
      for (int m = 0; m < M_; ++m) {
        double q = 0.0;
        for (int part = 0; part < warps_per_row_; ++part)
          q += sums_of(row / R * warps_per_row_ + part)[row % R * K_ + j * M_ + m];
        if (!(q < INFINITY)) q = repair_distance(p_, first + row, j * M_ + m);
        finite &= q == q;
        if (m == 0 || q < best) {  // ties keep the lowest index
          best = q;
          nearest = m;
        }
      }
      affinity(row, j) = finite ? exp(best * scale) : static_cast<double>(NAN);
      s_.nearest[row * kMostPrototypes + j] = static_cast<uint8_t>(nearest);
      if (j == s_.target[row]) s_.ratio[row] = best / p_.sigma;
    }
  }

  // Eq. 7 of one row per thread of the first warp.
  CFAL_DEVICE void finish_row(int64_t first, int here, double R_value, double& loss,
                              double& counted) {
    const int row = static_cast<int>(threadIdx.x);
    if (row >= here) return;
    const int y = s_.target[row];
    double value = 0.0;
    if (y >= 0) {
      const double s = affinity(row, y), slack = p_.margin - s, u = 2.0 / p_.sigma;
      double hinge_sum = 0.0, active = 0.0, poison = 0.0;
      for (int j = 0; j < C_; ++j) {
        const double a = affinity(row, j), h = slack + a;  // lambda + a_ij - s_i
        if (a != a) poison = a;                            // comparisons drop NaN silently
        if (j != y && h > 0.0) {
          hinge_sum += h;
          active += 1.0;
        }
      }
      const double diversity = p_.has_diversity() ? p_.diversity_weight * R_value : 0.0;
      const RowTerms terms = row_terms({complement_of(s_.ratio[row]), hinge_sum + poison, active,
                                        diversity, p_.class_weight_at(y)},
                                       p_.gamma, p_.detach_focal);
      s_.slack[row] = slack + poison;
      s_.hinge_slope[row] = u * terms.hinge_slope;
      // s == 0 first: 0 times an overflowed slope stays 0.
      s_.own[row] = (s == 0.0 ? 0.0 : u * terms.own_slope * s) + poison;
      s_.diversity_slope[row] = p_.has_diversity() ? p_.diversity_weight * terms.hinge_slope : 0.0;
      value = terms.loss;
      counted += 1.0;
    }
    loss += value;
    if (p_.reduction == Reduction::kNone)
      static_cast<T*>(a_.loss)[first + row] = static_cast<T>(value);
  }

  CFAL_DEVICE void write_coefficients(int64_t first, int here) {
    T* const out = static_cast<T*>(a_.saved) + first * (K_ + 1);
    for (int index = static_cast<int>(threadIdx.x); index < here * (K_ + 1);
         index += static_cast<int>(blockDim.x)) {
      const int row = index / (K_ + 1), k = index % (K_ + 1);
      out[index] = static_cast<T>(s_.target[row] < 0 ? 0.0 : coefficient(row, k));
    }
  }

  CFAL_DEVICE double coefficient(int row, int k) {
    if (k == K_) return s_.diversity_slope[row];
    const int j = k / M_;
    const double slack = s_.slack[row];
    if (slack != slack) return slack;
    if (s_.nearest[row * kMostPrototypes + j] != k % M_) return 0.0;
    if (j == s_.target[row]) return s_.own[row];
    const double a = affinity(row, j);
    return slack + a > 0.0 ? s_.hinge_slope[row] * a : 0.0;
  }

  // E_jk = (4 / P) (D_jk - mu), rows B ... B + K - 1 of saved. Every unused element is 0, but for
  // the place of N, which `reduce` writes.
  CFAL_DEVICE void write_pair_coefficients(double mean) {
    T* const out = static_cast<T*>(a_.saved) + FewLayout{p_.B, K_}.pairs_offset();
    const double scale = a_.plan.pairs > 0 ? 4.0 / static_cast<double>(a_.plan.pairs) : 0.0;
    for (int index = static_cast<int>(threadIdx.x); index < K_ * (K_ + 1);
         index += static_cast<int>(blockDim.x)) {
      const int j = index / (K_ + 1), k = index % (K_ + 1);
      if (index == K_ && p_.reduction == Reduction::kMean) continue;
      double value = 0.0;
      if (a_.plan.pairs > 0 && k != j && k < K_) {
        const double* const at = pairs_ + (j < k ? pair_place(K_, j, k) : pair_place(K_, k, j));
        value = scale * ((a_.plan.shares_pairs ? __ldcg(at) : *at) - mean);
      }
      out[index] = static_cast<T>(value);
    }
  }

  // The sum over rows: over the lanes of the first warp, over the blocks by the last one to finish,
  // each in an order of its own that is always the same.
  CFAL_DEVICE void reduce(double loss, double counted) {
    const bool reduces = p_.reduction != Reduction::kNone;
    if (reduces && warp_ == 0) {
      loss = warp_sum(loss);
      counted = warp_sum(counted);
    }
    if (gridDim.x == 1) {
      if (reduces && threadIdx.x == 0) write_loss(loss, counted);
      return;
    }
    if (!a_.plan.takes_tickets) return;
    // A block without rows has waited for nothing: its warps may still be taking pairs, and the
    // tickets for these must not be 0 again before they have seen the last one go.
    __syncthreads();
    if (threadIdx.x == 0) {
      if (reduces) {
        a_.workspace[2 * blockIdx.x] = loss;
        a_.workspace[2 * blockIdx.x + 1] = counted;
        __threadfence();
      }
      s_.last = atomicAdd(&a_.tickets[kFinished], 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!s_.last) return;
    if (threadIdx.x == 0) {
      __threadfence();
      // Every other block has taken its last ticket: the next launch finds zeros.
      a_.tickets[kFinished] = a_.tickets[kPairTaken] = a_.tickets[kPairDone] = 0;
    }
    if (!reduces) return;
    __syncthreads();
    loss = add_blocks(0);
    counted = add_blocks(1);
    if (threadIdx.x == 0) write_loss(loss, counted);
  }

  // Sum over the blocks of one of their two values; complete in the first thread.
  CFAL_DEVICE double add_blocks(int which) {
    double sum = 0.0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x)
      sum += __ldcg(a_.workspace + 2 * block + which);
    sum = warp_sum(sum);
    if (lane_ == 0) s_.total[warp_] = sum;
    __syncthreads();
    sum = 0.0;
    for (int warp = 0; warp < kForwardWarps; ++warp) sum += s_.total[warp];
    __syncthreads();
    return sum;
  }

  // The mean of nothing is NaN, as in torch's cross_entropy.
  CFAL_DEVICE void write_loss(double loss, double counted) {
    const bool mean = p_.reduction == Reduction::kMean;
    static_cast<T*>(a_.loss)[0] = static_cast<T>(mean ? loss / counted : loss);
    if (mean && a_.saved != nullptr)
      static_cast<T*>(a_.saved)[FewLayout{p_.B, K_}.pairs_offset() + K_] = static_cast<T>(counted);
  }

  const ForwardArguments& a_;
  const Problem& p_;
  Shared& s_;
  T* const slots_;       // [resident, K, segment]
  double* const sums_;   // [warps, R, K]: distances, then affinities
  double* const pairs_;  // [P], shared or global memory
  const int K_, C_, M_, warps_per_row_, lane_, warp_;
  int64_t staged_ = -1;  // first segment in slots_
};

template <class L>
CFAL_KERNEL(kForwardWarps* kWarp, 2)
few_forward(CFAL_PARAMETER ForwardArguments arguments) {
  CFAL_DYNAMIC_SHARED(dynamic);
  CFAL_STATIC_SHARED(ForwardShared<L>, shared);
  FewForward<L>(arguments, shared, dynamic).run();
}

}  // namespace cfal::cuda
