// The CPU implementations of torch.ops.cfal: allocate outputs, lend torch's threads and BLAS to the
// kernels, call them.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../cpu/cfal.h"
#include "problem.h"
#include "products.h"

namespace cfal::torch_door {
namespace {

Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype) {
  int64_t strides[3] = {1, 1, 1};
  const int64_t* size = sizes.begin();
  const auto dim = static_cast<int64_t>(sizes.size());
  for (int64_t d = dim - 2; d >= 0; --d)
    strides[d] = strides[d + 1] * (size[d + 1] > 0 ? size[d + 1] : 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, size, strides, dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void parallel_for(int64_t tasks, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, grain, body, context));
}

const Runtime kRuntime = {&parallel_for, &gemm<float>, &gemm<double>};

int32_t code_of(DType dtype) {
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

int32_t compute_code(const Problem& p) {
  return computes_in_double(p) ? codes().double_ : codes().single;
}

std::tuple<Tensor, Tensor> forward(const Tensor& features, const Tensor& prototypes,
                                   const Tensor& target, const std::optional<Tensor>& class_weights,
                                   double sigma, double margin, double gamma,
                                   double diversity_weight, bool detach_focal, int64_t reduction,
                                   int64_t ignore_index, int64_t regime, bool save) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  const int32_t type = compute_code(p);
  Tensor loss = p.reduction == Reduction::kNone ? empty({p.B}, type) : empty({}, type);
  Tensor saved = empty({save ? saved_numel(p) : 0}, type);
  cfal::forward(p, counted, kRuntime, loss.data_ptr(), save ? saved.data_ptr() : nullptr);
  return {std::move(loss), std::move(saved)};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& saved,
                                    const Tensor& features, const Tensor& prototypes,
                                    const Tensor& target,
                                    const std::optional<Tensor>& class_weights, double sigma,
                                    double margin, double gamma, double diversity_weight,
                                    bool detach_focal, int64_t reduction, int64_t ignore_index,
                                    int64_t regime, bool need_features, bool need_prototypes) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  const Facts coefficients = facts_of(saved), upstream = facts_of(grad_loss);
  STD_TORCH_CHECK(coefficients.dim == 1 && coefficients.sizes[0] == saved_numel(p) &&
                      coefficients.strides[0] == 1 && coefficients.dtype == compute_code(p),
                  "cfal: saved does not belong to these inputs");
  const bool per_row = p.reduction == Reduction::kNone;
  STD_TORCH_CHECK(upstream.dim == (per_row ? 1 : 0) && (!per_row || upstream.sizes[0] == p.B),
                  "cfal: grad_loss must have the shape of the loss");
  const DType upstream_type = dtype_of(upstream, "grad_loss");
  STD_TORCH_CHECK(upstream_type == DType::kFloat32 || upstream_type == DType::kFloat64,
                  "cfal: grad_loss must be float32 or float64");
  const int32_t features_code = code_of(p.features.dtype),
                prototypes_code = code_of(p.prototypes_dtype);
  Tensor grad_features =
      need_features ? empty({p.B, p.D}, features_code) : empty({0}, features_code);
  Tensor grad_prototypes =
      need_prototypes ? empty({p.C, p.M, p.D}, prototypes_code) : empty({0}, prototypes_code);
  cfal::backward(p, counted, {upstream.data, upstream_type, per_row ? upstream.strides[0] : 0},
                 coefficients.data, kRuntime, need_features ? grad_features.data_ptr() : nullptr,
                 need_prototypes ? grad_prototypes.data_ptr() : nullptr);
  return {std::move(grad_features), std::move(grad_prototypes)};
}

}  // namespace
}  // namespace cfal::torch_door

STABLE_TORCH_LIBRARY_IMPL(cfal, CPU, m) {
  m.impl("forward", TORCH_BOX(&cfal::torch_door::forward));
  m.impl("backward", TORCH_BOX(&cfal::torch_door::backward));
}
