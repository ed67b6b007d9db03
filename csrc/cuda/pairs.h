// The diversity term on the device, by differences of all pairs in double, as csrc/cpu/diversity.h:
//   D_jk = |w_j - w_k|^2,  mu = mean D_jk,  R = mean (D_jk - mu)^2 over the P pairs j < k.
#pragma once

#include "device.h"
#include "plan.h"

namespace cfal::cuda {

struct PairStatistics {
  double mean = 0.0;      // mu
  double variance = 0.0;  // R
};

// Place of the pair j < k among all: row by row of the upper triangle.
CFAL_DEVICE int pair_place(int K, int j, int k) { return j * (2 * K - j - 1) / 2 + k - j - 1; }

// D_jk of the pair at `place`, in every lane.
CFAL_DEVICE double pair_distance(const Problem& p, int place, int lane) {
  const int K = static_cast<int>(p.K());
  int j = 0;
  for (; place >= K - 1 - j; ++j) place -= K - 1 - j;
  const int k = j + 1 + place;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t d = lane; d < p.D; d += kWarp) {
    const double difference =
        load_element<double>(p.prototypes, p.prototypes_dtype, prototype_index(p, j, d)) -
        load_element<double>(p.prototypes, p.prototypes_dtype, prototype_index(p, k, d));
    sum += difference * difference;
  }
  return warp_sum(sum);
}

// Every warp of the block takes every eighth pair; the caller synchronises before reading.
CFAL_DEVICE void form_own_pairs(const Problem& p, int pairs, double* distances, int warp,
                                int lane) {
  for (int place = warp; place < pairs; place += kForwardWarps) {
    const double distance = pair_distance(p, place, lane);
    if (lane == 0) distances[place] = distance;
  }
}

// The warps of all blocks take pairs by ticket until none is left. A pair that is taken is being
// formed by a warp that waits for nobody, so that waiting for all pairs ends, whether or not all
// blocks fit the device at once.
CFAL_DEVICE void form_shared_pairs(const Problem& p, int pairs, double* distances,
                                   unsigned* tickets, int lane) {
  for (;;) {
    unsigned taken = 0;
    if (lane == 0) taken = atomicAdd(&tickets[kPairTaken], 1u);
    taken = __shfl_sync(kAllLanes, taken, 0);
    if (taken >= static_cast<unsigned>(pairs)) return;
    const double distance = pair_distance(p, static_cast<int>(taken), lane);
    if (lane == 0) {
      distances[taken] = distance;
      __threadfence();
      atomicAdd(&tickets[kPairDone], 1u);
    }
  }
}

// Called by all threads of the block.
CFAL_DEVICE void wait_for_shared_pairs(int pairs, unsigned* tickets) {
  if (threadIdx.x == 0) {
    while (atomicAdd(&tickets[kPairDone], 0u) < static_cast<unsigned>(pairs)) CFAL_WAIT();
    __threadfence();
  }
  __syncthreads();
}

// mu and R, in every lane. Prototypes may be nearly equidistant: the mean is summed as deviations
// from the first distance, or the rounding of a sum of large equal terms would be all that is left
// of D - mu. __ldcg: other blocks wrote the distances, and a first-level cache need not see that.
CFAL_DEVICE PairStatistics pair_statistics(const double* distances, int pairs, bool shared,
                                           int lane) {
  const double pivot = shared ? __ldcg(distances) : distances[0];
  double sum = 0.0, squares = 0.0;
  for (int i = lane; i < pairs; i += kWarp)
    sum += (shared ? __ldcg(distances + i) : distances[i]) - pivot;
  const double mean = pivot + warp_sum(sum) / pairs;
  for (int i = lane; i < pairs; i += kWarp) {
    const double deviation = (shared ? __ldcg(distances + i) : distances[i]) - mean;
    squares += deviation * deviation;
  }
  return {mean, warp_sum(squares) / pairs};
}

}  // namespace cfal::cuda
