// The tensors that the operators return: allocated here, written by the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>

#include "problem.h"

namespace cfal::torch_door {

// A device, in torch's codes.
struct Place {
  int32_t type, index;
};

inline Tensor empty(const int64_t* sizes, int64_t dim, int32_t dtype, Place place) {
  int64_t strides[3] = {1, 1, 1};
  for (int64_t d = dim - 2; d >= 0; --d)
    strides[d] = strides[d + 1] * (sizes[d + 1] > 0 ? sizes[d + 1] : 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides, dtype, place.type, place.index, &handle));
  return Tensor(handle);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype, Place place) {
  return empty(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype, place);
}

inline int32_t code_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return codes().half;
    case DType::kBFloat16:
      return codes().bfloat16;
    case DType::kFloat32:
      return codes().single;
    default:
      return codes().double_;
  }
}

inline int32_t compute_code(const Problem& p) {
  return computes_in_double(p) ? codes().double_ : codes().single;
}

inline Tensor empty_loss(const Problem& p, Place place) {
  if (p.reduction == Reduction::kNone) return empty({p.B}, compute_code(p), place);
  return empty({}, compute_code(p), place);
}

// The gradients that are asked for, in the inputs' shapes and dtypes; an empty tensor stands for
// one that is not.
class Gradients {
 public:
  Gradients(const Problem& p, const Tensor& prototypes_of_call, bool need_features,
            bool need_prototypes, Place place)
      : features(need_features ? empty({p.B, p.D}, code_of(p.features.dtype), place)
                               : empty({0}, code_of(p.features.dtype), place)),
        prototypes(need_prototypes ? like(p, prototypes_of_call, place)
                                   : empty({0}, code_of(p.prototypes_dtype), place)),
        features_out_(need_features ? features.data_ptr() : nullptr),
        prototypes_out_(need_prototypes ? prototypes.data_ptr() : nullptr) {}

  // Where to write them, or null.
  void* features_out() const { return features_out_; }
  void* prototypes_out() const { return prototypes_out_; }

  Tensor features, prototypes;

 private:
  static Tensor like(const Problem& p, const Tensor& prototypes, Place place) {
    int64_t dim;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(prototypes.get(), &dim));
    const int64_t sizes[3] = {p.C, dim == 2 ? p.D : p.M, p.D};
    return empty(sizes, dim, code_of(p.prototypes_dtype), place);
  }

  void *features_out_, *prototypes_out_;
};

}  // namespace cfal::torch_door
