// What a call computes, free of torch, Python and any device: views of the inputs, parameters, and
// the size of what the forward saves for the backward. Every door (torch, NumPy) and every kernel
// speaks in these terms.
//
//   B rows (samples), C classes, M centres per class, K = C * M prototypes in class-major order, D
//   features.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cfal {

enum class DType : int { kFloat16, kBFloat16, kFloat32, kFloat64 };
enum class Reduction : int { kNone = 0, kMean = 1, kSum = 2 };

// kFew: every distance by direct differences, a launch-bound shape. kMany: distances from matrix
// products.
enum class Regime : int { kFew = 0, kMany = 1 };

// A strided 2-D view; strides in elements.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 1;
};

struct Problem {
  int64_t B = 0, C = 0, M = 1, D = 0;

  MatrixView features;  // [B, D]

  // [C, M, D], strides in elements.
  const void* prototypes = nullptr;
  DType prototypes_dtype = DType::kFloat32;
  int64_t prototype_strides[3] = {0, 0, 1};

  const void* target = nullptr;  // [B] int64, or int32 when target_is_int32
  bool target_is_int32 = false;
  int64_t target_stride = 1;

  const void* class_weights = nullptr;  // [C] float32 or float64; null means ones
  DType class_weights_dtype = DType::kFloat32;
  int64_t class_weights_stride = 1;

  double sigma = 130.0;
  double margin = 0.1;
  double gamma = 2.0;
  double diversity_weight = 1.0;
  bool detach_focal = false;
  Reduction reduction = Reduction::kMean;
  int64_t ignore_index = -100;
  Regime regime = Regime::kFew;

  CFAL_HOST_DEVICE int64_t K() const { return C * M; }

  CFAL_HOST_DEVICE int64_t target_at(int64_t i) const {
    return target_is_int32 ? static_cast<const int32_t*>(target)[i * target_stride]
                           : static_cast<const int64_t*>(target)[i * target_stride];
  }

  CFAL_HOST_DEVICE double class_weight_at(int64_t c) const {
    if (class_weights == nullptr) return 1.0;
    return class_weights_dtype == DType::kFloat64
               ? static_cast<const double*>(class_weights)[c * class_weights_stride]
               : static_cast<const float*>(class_weights)[c * class_weights_stride];
  }

  // The diversity term of two or fewer centres is identically 0: one pair equals its own mean.
  CFAL_HOST_DEVICE bool has_diversity() const { return diversity_weight != 0.0 && K() > 2; }
};

// The compute type: float64 if features or prototypes are, else float32.
inline bool computes_in_double(const Problem& p) {
  return p.features.dtype == DType::kFloat64 || p.prototypes_dtype == DType::kFloat64;
}

// Whether every product of sizes that the kernels form stays far from overflow. Expanded views can
// claim any size.
inline bool sizes_fit(const Problem& p) {
  constexpr double kLargest = 72057594037927936.0;  // 2^56 elements
  const double B = static_cast<double>(p.B), D = static_cast<double>(p.D);
  const double K = static_cast<double>(p.C) * static_cast<double>(p.M);
  const double saved = p.regime == Regime::kFew ? (B + K) * (K + 1.0) : B * 6.0;
  return K * D < kLargest && B * D < kLargest && B * K < kLargest && saved < kLargest &&
         B + K + D < kLargest;
}

// The upstream gradient: a scalar for the reductions "mean" and "sum" (stride 0), one value a row
// for "none".
struct UpstreamView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;  // float32 or float64
  int64_t stride = 0;

  CFAL_HOST_DEVICE double at(int64_t i) const {
    return dtype == DType::kFloat64 ? static_cast<const double*>(data)[i * stride]
                                    : static_cast<const float*>(data)[i * stride];
  }
};

// First row whose target is neither a class nor ignore_index, or -1; *counted receives the number
// of rows not ignored.
inline int64_t find_bad_target(const Problem& p, int64_t* counted) {
  int64_t n = 0;
  for (int64_t i = 0; i < p.B; ++i) {
    const int64_t y = p.target_at(i);
    if (y == p.ignore_index) continue;
    if (y < 0 || y >= p.C) return i;
    ++n;
  }
  *counted = n;
  return -1;
}

}  // namespace cfal
