// Launch configurations of the few-prototype kernels: pure functions of the problem and of a few
// facts about the device, so that they can be tested without one, and so that results repeat bit
// for bit on a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/problem.h"

namespace cfal::cuda {

// What a launch needs to know of a device.
struct Device {
  int index = 0;
  int multiprocessors = 0;
  int64_t shared_per_multiprocessor = 0;  // bytes
  int64_t shared_per_block = 0;           // bytes, after raising the dynamic limit
};

constexpr int64_t kMostPrototypes = 64;
// Of a block's shared memory: 1 KiB for the runtime, and what the kernels declare statically.
constexpr int64_t kReservedShared = 1024 + 4096;

// Tickets are counters in device memory that are 0 between launches (tickets.h).
constexpr int kTickets = 64;                              // a launch may use
enum ForwardTicket { kFinished, kPairTaken, kPairDone };  // of the forward's

// How the lanes of a warp read features: see columns.h.
enum class Access { kVectors, kElements };

inline int64_t item_size(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}

inline int64_t compute_size(const Problem& p) { return computes_in_double(p) ? 8 : 4; }

inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

inline int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

// Vectors need adjacent columns, 16-byte aligned rows, and a compute type that is the loader's.
inline Access natural_access(const Problem& p) {
  const int64_t size = item_size(p.features.dtype);
  const bool aligned = reinterpret_cast<uintptr_t>(p.features.data) % 16 == 0 &&
                       (p.features.row_stride * size % 16 == 0 || p.B <= 1);
  const bool adjacent = p.features.col_stride == 1 || p.D == 1;
  const bool same_type = computes_in_double(p) == (p.features.dtype == DType::kFloat64);
  return aligned && adjacent && same_type ? Access::kVectors : Access::kElements;
}

// Columns that a warp covers at once.
inline int64_t segment_columns(const Problem& p, Access access) {
  return 32 * 16 / (access == Access::kVectors ? item_size(p.features.dtype) : compute_size(p));
}

// ---- forward

constexpr int kForwardWarps = 8;

// Prototypes whose sums a warp holds in registers at a time.
constexpr int64_t pass_prototypes(int64_t compute_size) { return compute_size == 8 ? 8 : 12; }

// Rows that a warp takes together: each read of a prototype from shared memory serves all of them.
// Four where registers allow: float32 by 16-byte loads.
constexpr int64_t forward_rows(bool adjacent, int64_t lane_columns) {
  return adjacent && lane_columns == 4 ? 4 : 2;
}

// Where every block forms all pair distances itself, up to this many differences; beyond it the
// blocks share the pairs and wait for one another.
constexpr int64_t kOwnPairWork = 32768;

struct ForwardPlan {
  Access access;
  int64_t blocks;
  int64_t warps_per_row;  // share the columns of their rows
  int64_t block_rows;     // rows a block takes at a time
  int64_t segments;       // of columns, in a row
  int64_t resident;       // segments of the prototypes in shared memory at a time
  int64_t pairs;          // P if R is wanted, else 0
  bool shares_pairs;      // pair distances in global memory, formed by all blocks together
  int64_t slots_bytes, sums_bytes, pairs_bytes, shared_bytes;
  bool takes_tickets;
  int64_t sums_doubles;       // of the workspace: sum and count of every block, if needed
  int64_t workspace_doubles;  // sums, pair distances if shared, spare tickets
  int64_t spare_doubles() const { return workspace_doubles - kTickets / 2; }
};

inline int64_t rows_of_forward(const Problem& p, Access access) {
  return forward_rows(access == Access::kVectors, segment_columns(p, access) / 32);
}

inline ForwardPlan plan_forward(const Problem& p, const Device& device) {
  ForwardPlan plan{};
  const int64_t K = p.K(), size = compute_size(p);
  const int64_t most_dynamic = device.shared_per_block - kReservedShared;
  plan.pairs = p.has_diversity() ? K * (K - 1) / 2 : 0;
  plan.shares_pairs = plan.pairs * p.D > kOwnPairWork;
  plan.pairs_bytes = plan.shares_pairs ? 0 : plan.pairs * 8;

  plan.access = natural_access(p);
  for (;; plan.access = Access::kElements) {  // narrower segments, where others do not fit
    plan.sums_bytes = rows_of_forward(p, plan.access) * kForwardWarps * K * 8;
    const int64_t least = K * segment_columns(p, plan.access) * size;
    const int64_t needed = least + plan.sums_bytes + plan.pairs_bytes;
    if (needed <= most_dynamic || plan.access == Access::kElements) break;
  }
  const int64_t other = plan.sums_bytes + plan.pairs_bytes;
  const int64_t columns = segment_columns(p, plan.access), rows = rows_of_forward(p, plan.access);
  plan.segments = divide_up(p.D, columns);

  // Several warps share a row where there are too few rows to fill the device.
  plan.warps_per_row = 1;
  while (plan.warps_per_row < kForwardWarps && plan.warps_per_row < plan.segments &&
         divide_up(p.B, rows * kForwardWarps / plan.warps_per_row) < device.multiprocessors)
    plan.warps_per_row *= 2;
  plan.block_rows = rows * kForwardWarps / plan.warps_per_row;

  const int64_t most = 2 * static_cast<int64_t>(device.multiprocessors);
  const int64_t groups = divide_up(p.B, plan.block_rows);
  plan.blocks = groups < 1 ? 1 : groups < most ? groups : most;
  if (plan.shares_pairs) {  // blocks without rows help with the pairs
    const int64_t useful = divide_up(plan.pairs, kForwardWarps);
    int64_t helpers = useful < device.multiprocessors ? useful : device.multiprocessors;
    if (helpers < 2) helpers = 2;  // a single block takes no tickets, and shares with nobody
    if (plan.blocks < helpers) plan.blocks = helpers;
  }

  // Shared memory: two blocks on a multiprocessor where one segment leaves room for that.
  const int64_t segment_bytes = K * columns * size;
  const int64_t half = device.shared_per_multiprocessor / 2 - kReservedShared;
  const int64_t limit = half < most_dynamic ? half : most_dynamic;
  plan.resident = (limit - other) / segment_bytes;
  if (plan.resident < 1) plan.resident = 1;
  if (plan.resident > plan.segments) plan.resident = plan.segments;
  plan.slots_bytes = plan.resident * segment_bytes;
  plan.shared_bytes = plan.slots_bytes + other;

  const bool reduces = p.reduction != Reduction::kNone;
  plan.takes_tickets = plan.blocks > 1 && (reduces || plan.shares_pairs);
  plan.sums_doubles = plan.blocks > 1 && reduces ? 2 * plan.blocks : 0;
  plan.workspace_doubles = plan.sums_doubles + (plan.shares_pairs ? plan.pairs : 0) +
                           (plan.takes_tickets ? kTickets / 2 : 0);
  return plan;
}

// ---- backward

constexpr int kMostBackwardWarps = 8;
constexpr int64_t kWarpRows = 256;  // rows that a warp sums in the compute type, at most

// Rows that a warp takes together: with the 16 bytes of each, 32 values of features in registers.
constexpr int64_t backward_rows(int64_t lane_columns) { return lane_columns == 8 ? 4 : 8; }

struct BackwardPlan {
  Access access;
  int64_t warps;
  int64_t tiles;        // segments of columns
  int64_t tile_groups;  // a block owns tiles g, g + tile_groups, ...
  int64_t chunks;       // of rows
  int64_t chunk_rows;
  int64_t slots_bytes, sums_bytes, pulls_bytes, shared_bytes;
  bool takes_tickets;
  int64_t workspace_doubles;  // [chunks, tiles, K segment + 1], spare tickets
  int64_t spare_doubles() const { return workspace_doubles - kTickets / 2; }
};

inline BackwardPlan plan_backward(const Problem& p, const Device& device, bool need_prototypes) {
  BackwardPlan plan{};
  const int64_t K = p.K(), size = compute_size(p);
  const int64_t most_dynamic = device.shared_per_block - kReservedShared;
  plan.access = natural_access(p);
  for (;;) {
    const int64_t columns = segment_columns(p, plan.access), rows = backward_rows(columns / 32);
    // As many warps as leave room for two blocks; fewer where K is large; at last, one.
    for (plan.warps = kMostBackwardWarps;; plan.warps /= 2) {
      plan.slots_bytes = K * columns * size;
      plan.sums_bytes = need_prototypes ? plan.warps * K * columns * size : 0;
      plan.pulls_bytes = plan.warps * K * rows * size;
      plan.shared_bytes = plan.slots_bytes + plan.sums_bytes + plan.pulls_bytes;
      const bool two =
          2 * (plan.shared_bytes + kReservedShared) <= device.shared_per_multiprocessor;
      if (plan.warps == 1 || (two && plan.shared_bytes <= most_dynamic)) break;
    }
    if (plan.shared_bytes <= most_dynamic || plan.access == Access::kElements) break;
    plan.access = Access::kElements;  // narrower segments
  }
  const int64_t columns = segment_columns(p, plan.access), rows = backward_rows(columns / 32);
  plan.tiles = divide_up(p.D, columns);
  plan.tile_groups = plan.tiles < kTickets ? plan.tiles : kTickets;

  const int64_t row_groups = divide_up(p.B, rows);
  const int64_t wanted =
      divide_up(2 * static_cast<int64_t>(device.multiprocessors), plan.tile_groups);
  const int64_t possible = divide_up(row_groups, plan.warps);
  plan.chunks = wanted < possible ? wanted : possible;
  const int64_t least = divide_up(p.B, plan.warps * kWarpRows);
  if (plan.chunks < least) plan.chunks = least;
  if (plan.chunks < 1) plan.chunks = 1;
  plan.chunk_rows = divide_up(row_groups, plan.chunks) * rows;
  plan.chunks = plan.chunk_rows > 0 ? divide_up(p.B, plan.chunk_rows) : 1;
  plan.takes_tickets = need_prototypes && plan.chunks > 1;
  plan.workspace_doubles =
      plan.takes_tickets ? plan.chunks * plan.tiles * (K * columns + 1) + kTickets / 2 : 0;
  return plan;
}

}  // namespace cfal::cuda
