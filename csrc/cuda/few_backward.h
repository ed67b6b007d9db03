// Few prototypes, backward, in one launch. With e_ij = g_i c_ij for the upstream gradient g
// (divided by N for the mean),
//   grad_f_i = -sum_j e_ij (f_i - w_j),
//   grad_w_j = sum_i e_ij (f_i - w_j) + G sum_k E_jk (w_j - w_k),   G = sum_i g_i dl_i/dR.
// A block owns tiles of columns and a chunk of rows. Each of its warps keeps sums of its own for
// grad_w; they are added in the order of warps, and chunks in the order of chunks, by the block
// that finishes a tile last. No sum depends on which block that is.
#pragma once

#include "../core/saved.h"
#include "columns.h"
#include "plan.h"

namespace cfal::cuda {

struct BackwardArguments {
  Problem p;
  BackwardPlan plan;
  UpstreamView upstream;
  const void* saved;      // FewLayout, compute type
  void* grad_features;    // [B, D] contiguous, dtype of the features, or null
  void* grad_prototypes;  // [C, M, D] contiguous, dtype of the prototypes, or null
  double* workspace;      // plan.workspace_doubles
  unsigned* tickets;      // kTickets zeros, which the launch leaves as zeros
};

struct BackwardShared {
  double pull[kMostBackwardWarps];  // parts of G
  bool last;
};

template <class L>
class FewBackward {
 public:
  using T = typename L::Compute;
  static constexpr int V = L::V, Q = kQuad<T>, R = static_cast<int>(backward_rows(V)),
                       kSegment = L::kSegment;

  CFAL_DEVICE FewBackward(const BackwardArguments& a, BackwardShared& shared,
                          unsigned char* dynamic)
      : a_(a),
        p_(a.p),
        s_(shared),
        K_(static_cast<int>(a.p.K())),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        slots_(reinterpret_cast<T*>(dynamic)),
        all_sums_(reinterpret_cast<T*>(dynamic + a.plan.slots_bytes)),
        sums_(a.grad_prototypes != nullptr ? all_sums_ + warp_ * K_ * kSegment : nullptr),
        pulls_(reinterpret_cast<T*>(dynamic + a.plan.slots_bytes + a.plan.sums_bytes) +
               warp_ * K_ * R),
        saved_(static_cast<const T*>(a.saved)) {}

  CFAL_DEVICE void run() {
    // The mean's 1 / N; without counted rows nothing is multiplied by it.
    if (p_.reduction == Reduction::kMean)
      scale_ = 1.0 / static_cast<double>(saved_[FewLayout{p_.B, K_}.pairs_offset() + K_]);
    const int64_t group = blockIdx.x % a_.plan.tile_groups;
    const int64_t chunk = blockIdx.x / a_.plan.tile_groups;
    for (int64_t tile = group; tile < a_.plan.tiles; tile += a_.plan.tile_groups) {
      __syncthreads();  // the slots and sums of the tile before are read no more
      stage_prototypes<L>(p_, tile, 1, slots_);
      if (sums_ != nullptr)
        for (int i = lane_; i < K_ * kSegment; i += kWarp) sums_[i] = T{0};
      __syncthreads();
      const double pull = pull_rows(tile, chunk);
      if (a_.grad_prototypes == nullptr) continue;
      if (lane_ == 0) s_.pull[warp_] = pull;
      __syncthreads();
      if (a_.plan.chunks == 1)
        finish_prototypes(tile, add_pulls());
      else
        write_partial(tile, chunk);
    }
    if (!a_.plan.takes_tickets || !is_last(group)) return;
    for (int64_t tile = group; tile < a_.plan.tiles; tile += a_.plan.tile_groups) {
      __syncthreads();
      if (a_.plan.tiles > a_.plan.tile_groups) {
        stage_prototypes<L>(p_, tile, 1, slots_);
        __syncthreads();
      }
      finish_prototypes(tile, add_chunk_pulls(tile));
    }
  }

 private:
  // The rows of a chunk, R at a time, in this warp's share. Returns its part of G, in every lane.
  CFAL_DEVICE double pull_rows(int64_t tile, int64_t chunk) {
    const int64_t begin = chunk * a_.plan.chunk_rows, end = begin + a_.plan.chunk_rows;
    const int64_t last = end < p_.B ? end : p_.B;
    double pull = 0.0;
    for (int64_t first = begin + warp_ * R; first < last; first += a_.plan.warps * R) {
      const int rows = static_cast<int>(last - first < R ? last - first : R);
      const unsigned pulling = read_coefficients(first, rows, pull);
      typename L::Row in[R], out[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        in[r] = L::zeros();  // 0 times what a row without a gradient holds may be NaN
        if (pulling >> r & 1u) in[r] = L::load(p_, first + r, tile * kSegment, lane_);
      }
#pragma unroll
      for (int quad = 0; quad < V / Q; ++quad) {
        T f[R][Q], sum[R][Q];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int v = 0; v < Q; ++v) {
            f[r][v] = L::value(in[r], quad * Q + v);
            sum[r][v] = T{0};
          }
        if (pulling != 0) add_pull(quad, f, sum);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int v = 0; v < Q; ++v)  // nor must a prototype that is NaN reach such a row
            from_compute(pulling >> r & 1u ? sum[r][v] : T{0}, out[r].element[quad * Q + v]);
      }
      if (a_.grad_features != nullptr) {
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (first + r < last)
            L::store(p_, a_.grad_features, first + r, tile * kSegment, lane_, out[r]);
      }
      __syncwarp();  // before the next rows' coefficients
    }
    return warp_sum(pull);
  }

  // e = g c of up to R rows to pulls_ [K, R]. Bit r of the result: row r pulls at all. An inactive
  // or ignored row has only zeros, whatever it holds, and its gradient is exactly 0.
  CFAL_DEVICE unsigned read_coefficients(int64_t first, int rows, double& pull) {
    T g = T{0};
    bool counts = false;
    if (lane_ < rows) {
      const int64_t i = first + lane_;
      counts = p_.target_at(i) != p_.ignore_index;
      if (counts) {
        const double upstream = a_.upstream.at(i) * scale_;
        g = static_cast<T>(upstream);
        pull += upstream * static_cast<double>(saved_[i * (K_ + 1) + K_]);
      }
    }
    const unsigned counting = __ballot_sync(kAllLanes, counts);
    unsigned pulling = 0;
    for (int base = 0; base < R * K_; base += kWarp) {
      const int index = base + lane_, r = index / K_, k = index % K_;
      const T g_r = __shfl_sync(kAllLanes, g, r % R);
      if (index < R * K_) {
        T e = T{0};
        if (counting >> r & 1u) e = g_r * saved_[(first + r) * (K_ + 1) + k];
        pulls_[k * R + r] = e;
        if (e != T{0}) pulling |= 1u << r;
      }
    }
    __syncwarp();
    return __reduce_or_sync(kAllLanes, pulling);
  }

  // sum -= e (f - w), sums_ += e (f - w) over all prototypes, in Q of a lane's columns.
  CFAL_DEVICE void add_pull(int quad, const T (&f)[R][Q], T (&sum)[R][Q]) {
    for (int k = 0; k < K_; ++k) {
      T e[R];
#pragma unroll
      for (int part = 0; part < R / Q; ++part) {
        const auto packed = *reinterpret_cast<const Packed<T, Q>*>(pulls_ + k * R + part * Q);
#pragma unroll
        for (int r = 0; r < Q; ++r) e[part * Q + r] = packed.element[r];
      }
      const Packed<T, Q> w = quad_at(slots_ + k * kSegment, lane_, quad);
      Packed<T, Q> total{};
      if (sums_ != nullptr) total = quad_at(sums_ + k * kSegment, lane_, quad);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int v = 0; v < Q; ++v) {
          const T difference = f[r][v] - w.element[v];
          sum[r][v] -= e[r] * difference;
          total.element[v] += e[r] * difference;
        }
      if (sums_ != nullptr) quad_at(sums_ + k * kSegment, lane_, quad) = total;
    }
  }

  // The block's sum at [k, slot], over its warps.
  CFAL_DEVICE double add_warps(int index) const {
    double sum = 0.0;
    for (int warp = 0; warp < a_.plan.warps; ++warp)
      sum += static_cast<double>(all_sums_[warp * K_ * kSegment + index]);
    return sum;
  }

  CFAL_DEVICE double add_pulls() const {
    double sum = 0.0;
    for (int warp = 0; warp < a_.plan.warps; ++warp) sum += s_.pull[warp];
    return sum;
  }

  CFAL_DEVICE double* partial(int64_t tile, int64_t chunk) const {
    return a_.workspace + (chunk * a_.plan.tiles + tile) * (K_ * kSegment + 1);
  }

  CFAL_DEVICE void write_partial(int64_t tile, int64_t chunk) {
    double* const out = partial(tile, chunk);
    for (int index = static_cast<int>(threadIdx.x); index < K_ * kSegment;
         index += static_cast<int>(blockDim.x))
      out[index] = add_warps(index);
    if (threadIdx.x == 0) out[K_ * kSegment] = add_pulls();
  }

  // Whether this block is the last to finish the chunks of its tiles; the ticket is 0 again then.
  CFAL_DEVICE bool is_last(int64_t group) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      s_.last = atomicAdd(&a_.tickets[group], 1u) == static_cast<unsigned>(a_.plan.chunks - 1);
      if (s_.last) a_.tickets[group] = 0;
      __threadfence();
    }
    __syncthreads();
    return s_.last;
  }

  // G, in every lane. __ldcg: other blocks wrote it.
  CFAL_DEVICE double add_chunk_pulls(int64_t tile) const {
    double sum = 0.0;
    for (int64_t chunk = lane_; chunk < a_.plan.chunks; chunk += kWarp)
      sum += __ldcg(partial(tile, chunk) + K_ * kSegment);
    return warp_sum(sum);
  }

  // The gradient of the prototypes in the columns of a tile, by all threads.
  CFAL_DEVICE void finish_prototypes(int64_t tile, double G) {
    const int64_t stride = a_.plan.tiles * (K_ * kSegment + 1);
    for (int index = static_cast<int>(threadIdx.x); index < K_ * kSegment;
         index += static_cast<int>(blockDim.x)) {
      const int k = index / kSegment, slot = index % kSegment;
      const int64_t d = tile * kSegment + column_of_slot<L>(slot);
      if (d >= p_.D) continue;
      double sum = 0.0;
      if (a_.plan.chunks == 1) {
        sum = add_warps(index);
      } else {
        const double* const part = partial(tile, 0) + index;
#pragma unroll 8
        for (int64_t chunk = 0; chunk < a_.plan.chunks; ++chunk)
          sum += __ldcg(part + chunk * stride);
      }
      if (p_.has_diversity()) sum += G * static_cast<double>(push(k, slot));
      store_element(a_.grad_prototypes, p_.prototypes_dtype, k * p_.D + d, static_cast<T>(sum));
    }
  }

  // sum_j E_kj (w_k - w_j), one column of dR/dw_k.
  CFAL_DEVICE T push(int k, int slot) const {
    const T* const pairs = saved_ + FewLayout{p_.B, K_}.pairs_offset() + k * (K_ + 1);
    const T w = slots_[k * kSegment + slot];
    T sum = T{0};
    for (int j = 0; j < K_; ++j) sum += pairs[j] * (w - slots_[j * kSegment + slot]);
    return sum;
  }

  const BackwardArguments& a_;
  const Problem& p_;
  BackwardShared& s_;
  const int K_, lane_, warp_;
  T* const slots_;     // [K, segment]
  T* const all_sums_;  // [warps, K, segment]
  T* const sums_;      // [K, segment] of this warp, or null
  T* const pulls_;     // [K, R] of this warp
  const T* const saved_;
  double scale_ = 1.0;
};

template <class L>
CFAL_KERNEL(kMostBackwardWarps* kWarp, 2)
few_backward(CFAL_PARAMETER BackwardArguments arguments) {
  CFAL_DYNAMIC_SHARED(dynamic);
  CFAL_STATIC_SHARED(BackwardShared, shared);
  FewBackward<L>(arguments, shared, dynamic).run();
}

}  // namespace cfal::cuda
