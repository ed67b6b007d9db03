// How the lanes of a warp share the columns of a row. A segment is 32 V columns, V of them a
// lane's: those that one 16-byte load brings (Vectors), or every 32nd where rows are strided,
// misaligned or of another dtype than the loader's (Elements).
//
// Prototypes lie in shared memory by slots, not by columns: lane l reads its V elements as 16-byte
// quads, and neighbouring lanes neighbouring quads, whichever columns these are. So one kernel
// serves every loader without bank conflicts.
#pragma once

#include "device.h"

namespace cfal::cuda {

// Elements of T in 16 bytes of shared memory.
template <class T>
constexpr int kQuad = 16 / static_cast<int>(sizeof(T));

// Rows of dtype F, 16-byte aligned, columns adjacent. Lane l holds columns l V ... l V + V - 1.
template <class F, class T>
struct Vectors {
  using Compute = T;
  static constexpr int V = 16 / static_cast<int>(sizeof(F));
  static constexpr int kSegment = kWarp * V;
  static constexpr bool kAdjacent = true;  // the columns of a quad are adjacent

  CFAL_DEVICE static int column(int lane, int v) { return lane * V + v; }

  // What a lane holds of a row, converted when it is used: half types take half the registers.
  using Row = Packed<F, V>;

  CFAL_DEVICE static T value(const Row& row, int v) { return to_compute(row.element[v], T{}); }

  CFAL_DEVICE static Row zeros() {
    Row row;
    memset(&row, 0, sizeof row);
    return row;
  }

  // Columns [first, first + 32 V) of row i of the features; columns from D on read as 0.
  CFAL_DEVICE static Row load(const Problem& p, int64_t i, int64_t first, int lane) {
    const int64_t d = first + lane * V;
    const F* const row = static_cast<const F*>(p.features.data) + i * p.features.row_stride;
    if (d + V <= p.D) return load_16_bytes(row + d);
    Row out = zeros();
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (d + v < p.D) out.element[v] = row[d + v];
    return out;
  }

  // The same columns of row i of a contiguous [B, D] matrix of the features' dtype.
  CFAL_DEVICE static void store(const Problem& p, void* data, int64_t i, int64_t first, int lane,
                                const Row& value) {
    const int64_t d = first + lane * V;
    F* const row = static_cast<F*>(data) + i * p.D;
    if (p.D % V == 0) {
      if (d < p.D) store_16_bytes(row + d, value);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (d + v < p.D) row[d + v] = value.element[v];
    }
  }
};

// Rows of any dtype and strides. Lane l holds columns l, l + 32, ...
template <class T>
struct Elements {
  using Compute = T;
  static constexpr int V = kQuad<T>;
  static constexpr int kSegment = kWarp * V;
  static constexpr bool kAdjacent = false;

  CFAL_DEVICE static int column(int lane, int v) { return v * kWarp + lane; }

  using Row = Packed<T, V>;

  CFAL_DEVICE static T value(const Row& row, int v) { return row.element[v]; }

  CFAL_DEVICE static Row zeros() { return Row{}; }

  CFAL_DEVICE static Row load(const Problem& p, int64_t i, int64_t first, int lane) {
    Row out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t d = first + column(lane, v);
      out.element[v] =
          d < p.D ? load_element<T>(p.features.data, p.features.dtype, feature_index(p, i, d))
                  : T{0};
    }
    return out;
  }

  CFAL_DEVICE static void store(const Problem& p, void* data, int64_t i, int64_t first, int lane,
                                const Row& value) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t d = first + column(lane, v);
      if (d < p.D) store_element(data, p.features.dtype, i * p.D + d, value.element[v]);
    }
  }
};

// The slot of a lane's element v within a segment, and back to the column.
template <class T>
CFAL_DEVICE int slot_of(int lane, int v) {
  return v / kQuad<T> * (kWarp * kQuad<T>)+lane * kQuad<T> + v % kQuad<T>;
}

template <class L>
CFAL_DEVICE int column_of_slot(int slot) {
  constexpr int Q = kQuad<typename L::Compute>;
  return L::column(slot / Q % kWarp, slot / (kWarp * Q) * Q + slot % Q);
}

// Elements [16 bytes] number `quad` of a lane's share of a row of slots in shared memory.
template <class T>
CFAL_DEVICE Packed<T, kQuad<T>>& quad_at(T* slots, int lane, int quad) {
  return *reinterpret_cast<Packed<T, kQuad<T>>*>(slots + slot_of<T>(lane, quad * kQuad<T>));
}

// Copies segments [first, first + count) of all K prototypes to out [count, K, segment], in slots,
// by all threads of the block; columns from D on become 0. The caller synchronises.
template <class L>
CFAL_DEVICE void stage_prototypes(const Problem& p, int64_t first, int64_t count,
                                  typename L::Compute* out) {
  using T = typename L::Compute;
  constexpr int Q = kQuad<T>, kQuads = L::kSegment / Q;
  const int K = static_cast<int>(p.K());
  const bool whole =
      L::kAdjacent && p.prototypes_dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32) &&
      p.prototype_strides[2] == 1 && p.prototype_strides[0] % Q == 0 &&
      p.prototype_strides[1] % Q == 0 && reinterpret_cast<uintptr_t>(p.prototypes) % 16 == 0;
  const int total = static_cast<int>(count) * K * kQuads;
  for (int index = static_cast<int>(threadIdx.x); index < total;
       index += static_cast<int>(blockDim.x)) {
    const int quad = index % kQuads, row = index / kQuads;  // row = segment * K + k
    const int64_t k = row % K, start = (first + row / K) * L::kSegment;
    const int64_t d = start + column_of_slot<L>(quad * Q);
    Packed<T, Q> packed;
    if (whole && d + Q <= p.D) {
      packed = load_16_bytes(static_cast<const T*>(p.prototypes) + prototype_index(p, k, d));
    } else {
#pragma unroll
      for (int v = 0; v < Q; ++v) {
        const int64_t column = start + column_of_slot<L>(quad * Q + v);
        packed.element[v] = column < p.D ? load_element<T>(p.prototypes, p.prototypes_dtype,
                                                           prototype_index(p, k, column))
                                         : T{0};
      }
    }
    *reinterpret_cast<Packed<T, Q>*>(out + static_cast<int64_t>(row) * L::kSegment + quad * Q) =
        packed;
  }
}

}  // namespace cfal::cuda
