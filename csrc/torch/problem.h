// From stable tensors to the kernels' Problem, with the checks that keep a kernel from reading what
// is not there. Messages for people come from cfal_kernels/functional.py, which sees the arguments
// first; these guard direct calls of torch.ops.cfal.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../core/problem.h"

namespace cfal::torch_door {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "cfal: ", name, " must be float16, bfloat16, float32 or float64");
  }
}

struct Parameters {
  double sigma, margin, gamma, diversity_weight;
  bool detach_focal;
  int64_t reduction, ignore_index, regime;
};

inline Problem make_problem(const Tensor& features, const Tensor& prototypes, const Tensor& target,
                            const std::optional<Tensor>& class_weights,
                            const Parameters& parameters) {
  STD_TORCH_CHECK(features.dim() == 2 && prototypes.dim() == 3 && target.dim() == 1,
                  "cfal: features, prototypes and target must have 2, 3 and 1 dimensions, got ",
                  features.dim(), ", ", prototypes.dim(), " and ", target.dim());
  Problem p;
  p.B = features.size(0);
  p.D = features.size(1);
  p.C = prototypes.size(0);
  p.M = prototypes.size(1);
  STD_TORCH_CHECK(prototypes.size(2) == p.D, "cfal: features have ", p.D, " columns, prototypes ",
                  prototypes.size(2));
  STD_TORCH_CHECK(target.size(0) == p.B, "cfal: features have ", p.B, " rows, target ",
                  target.size(0));
  STD_TORCH_CHECK(p.C > 0 && p.M > 0 && p.D > 0, "cfal: prototypes must not be empty");
  p.features = {
      features.const_data_ptr(), dtype_of(features, "features"), p.B, p.D, features.stride(0),
      features.stride(1)};
  p.prototypes = prototypes.const_data_ptr();
  p.prototypes_dtype = dtype_of(prototypes, "prototypes");
  for (int d = 0; d < 3; ++d) p.prototype_strides[d] = prototypes.stride(d);
  const ScalarType target_type = target.scalar_type();
  STD_TORCH_CHECK(target_type == ScalarType::Long || target_type == ScalarType::Int,
                  "cfal: target must be int64 or int32");
  p.target = target.const_data_ptr();
  p.target_is_int32 = target_type == ScalarType::Int;
  p.target_stride = target.stride(0);
  if (class_weights.has_value()) {
    STD_TORCH_CHECK(class_weights->dim() == 1 && class_weights->size(0) == p.C,
                    "cfal: class_weights must have ", p.C, " elements");
    p.class_weights_dtype = dtype_of(*class_weights, "class_weights");
    STD_TORCH_CHECK(
        p.class_weights_dtype == DType::kFloat32 || p.class_weights_dtype == DType::kFloat64,
        "cfal: class_weights must be float32 or float64");
    p.class_weights = class_weights->const_data_ptr();
    p.class_weights_stride = class_weights->stride(0);
  }
  p.sigma = parameters.sigma;
  p.margin = parameters.margin;
  p.gamma = parameters.gamma;
  p.diversity_weight = parameters.diversity_weight;
  p.detach_focal = parameters.detach_focal;
  STD_TORCH_CHECK(parameters.reduction >= 0 && parameters.reduction <= 2,
                  "cfal: reduction must be 0, 1 or 2");
  STD_TORCH_CHECK(parameters.regime == 0 || parameters.regime == 1, "cfal: regime must be 0 or 1");
  p.reduction = static_cast<Reduction>(parameters.reduction);
  p.ignore_index = parameters.ignore_index;
  p.regime = static_cast<Regime>(parameters.regime);
  return p;
}

inline int64_t count_rows(const Problem& p) {
  int64_t counted = 0;
  const int64_t bad = find_bad_target(p, &counted);
  STD_TORCH_CHECK(bad < 0, "cfal: target has value ", p.target_at(bad), " at position ", bad,
                  ", expected 0 <= target < ", p.C, " (number of classes) or ignore_index ",
                  p.ignore_index);
  return counted;
}

}  // namespace cfal::torch_door
