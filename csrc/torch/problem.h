// From stable tensors to the kernels' Problem, with the checks that keep a kernel from reading what
// is not there. Messages for people come from cfal_kernels/functional.py, which sees the arguments
// first; these guard direct calls of torch.ops.cfal.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../core/problem.h"

namespace cfal::torch_door {

using torch::stable::Tensor;

// What the kernels read of a tensor, each fact asked once: every question crosses torch's C
// interface.
struct Facts {
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
  int32_t dtype;  // torch's own code
  const void* data;
};

inline Facts facts_of(const Tensor& tensor) {
  const AtenTensorHandle handle = tensor.get();
  Facts facts{};
  int64_t *sizes = nullptr, *strides = nullptr;
  void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &facts.dim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &facts.dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  facts.sizes = sizes;
  facts.strides = strides;
  facts.data = data;
  int64_t numel = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &numel));
  STD_TORCH_CHECK(data != nullptr || numel == 0,
                  "cfal: a tensor has no memory (its storage was freed)");
  return facts;
}

// torch's codes of the dtypes, asked once per process.
struct DTypeCodes {
  int32_t half = aoti_torch_dtype_float16(), bfloat16 = aoti_torch_dtype_bfloat16();
  int32_t single = aoti_torch_dtype_float32(), double_ = aoti_torch_dtype_float64();
  int32_t int32 = aoti_torch_dtype_int32(), int64 = aoti_torch_dtype_int64();
};

inline const DTypeCodes& codes() {
  static const DTypeCodes all;
  return all;
}

inline DType dtype_of(const Facts& tensor, const char* name) {
  const DTypeCodes& known = codes();
  if (tensor.dtype == known.single) return DType::kFloat32;
  if (tensor.dtype == known.half) return DType::kFloat16;
  if (tensor.dtype == known.bfloat16) return DType::kBFloat16;
  STD_TORCH_CHECK(tensor.dtype == known.double_, "cfal: ", name,
                  " must be float16, bfloat16, float32 or float64");
  return DType::kFloat64;
}

struct Parameters {
  double sigma, margin, gamma, diversity_weight;
  bool detach_focal;
  int64_t reduction, ignore_index, regime;
};

inline void check_sizes(const Problem& p) {
  STD_TORCH_CHECK(sizes_fit(p), "cfal: features of ", p.B, " rows and ", p.D, " columns with ", p.C,
                  " classes of ", p.M, " centres are too large");
}

// Features and prototypes alone.
inline Problem make_places(const Tensor& features_tensor, const Tensor& prototypes_tensor) {
  const Facts features = facts_of(features_tensor), prototypes = facts_of(prototypes_tensor);
  STD_TORCH_CHECK(features.dim == 2 && (prototypes.dim == 2 || prototypes.dim == 3),
                  "cfal: features and prototypes must have 2, and 2 or 3 dimensions, got ",
                  features.dim, " and ", prototypes.dim);
  const bool flat = prototypes.dim == 2;  // [C, D]: one centre a class
  Problem p;
  p.B = features.sizes[0];
  p.D = features.sizes[1];
  p.C = prototypes.sizes[0];
  p.M = flat ? 1 : prototypes.sizes[1];
  STD_TORCH_CHECK(prototypes.sizes[prototypes.dim - 1] == p.D, "cfal: features have ", p.D,
                  " columns, prototypes ", prototypes.sizes[prototypes.dim - 1]);
  STD_TORCH_CHECK(p.C > 0 && p.M > 0 && p.D > 0, "cfal: prototypes must not be empty");
  p.features = {features.data,      dtype_of(features, "features"), p.B, p.D, features.strides[0],
                features.strides[1]};
  p.prototypes = prototypes.data;
  p.prototypes_dtype = dtype_of(prototypes, "prototypes");
  p.prototype_strides[0] = prototypes.strides[0];
  p.prototype_strides[1] = flat ? 0 : prototypes.strides[1];
  p.prototype_strides[2] = prototypes.strides[prototypes.dim - 1];
  check_sizes(p);
  return p;
}

inline Problem make_problem(const Tensor& features, const Tensor& prototypes,
                            const Tensor& target_tensor, const std::optional<Tensor>& class_weights,
                            const Parameters& parameters) {
  Problem p = make_places(features, prototypes);
  const Facts target = facts_of(target_tensor);
  STD_TORCH_CHECK(target.dim == 1, "cfal: target must have 1 dimension, got ", target.dim);
  STD_TORCH_CHECK(target.sizes[0] == p.B, "cfal: features have ", p.B, " rows, target ",
                  target.sizes[0]);
  STD_TORCH_CHECK(target.dtype == codes().int64 || target.dtype == codes().int32,
                  "cfal: target must be int64 or int32");
  p.target = target.data;
  p.target_is_int32 = target.dtype == codes().int32;
  p.target_stride = target.strides[0];
  if (class_weights.has_value()) {
    const Facts weights = facts_of(*class_weights);
    STD_TORCH_CHECK(weights.dim == 1 && weights.sizes[0] == p.C, "cfal: class_weights must have ",
                    p.C, " elements");
    p.class_weights_dtype = dtype_of(weights, "class_weights");
    STD_TORCH_CHECK(
        p.class_weights_dtype == DType::kFloat32 || p.class_weights_dtype == DType::kFloat64,
        "cfal: class_weights must be float32 or float64");
    p.class_weights = weights.data;
    p.class_weights_stride = weights.strides[0];
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
  check_sizes(p);
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
