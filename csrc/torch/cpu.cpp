// The CPU implementations of torch.ops.cfal: allocate outputs, lend torch's threads and BLAS to the
// kernels, call them.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../cpu/cfal.h"
#include "outputs.h"
#include "problem.h"
#include "products.h"

namespace cfal::torch_door {
namespace {

Place cpu() { return {aoti_torch_device_type_cpu(), 0}; }

void parallel_for(int64_t tasks, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, tasks, grain, body, context));
}

int64_t threads() {
  uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

const Runtime kRuntime = {&parallel_for, &threads, &gemm<float>, &gemm<double>};

std::tuple<Tensor, Tensor> forward(const Tensor& features, const Tensor& prototypes,
                                   const Tensor& target, const std::optional<Tensor>& class_weights,
                                   double sigma, double margin, double gamma,
                                   double diversity_weight, bool detach_focal, int64_t reduction,
                                   int64_t ignore_index, int64_t regime, bool save) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  Tensor loss = empty_loss(p, cpu());
  Tensor saved = empty({save ? saved_numel(p) : 0}, compute_code(p), cpu());
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
  Gradients gradients(p, prototypes, need_features, need_prototypes, cpu());
  cfal::backward(p, counted, {upstream.data, upstream_type, per_row ? upstream.strides[0] : 0},
                 coefficients.data, kRuntime, gradients.features_out(), gradients.prototypes_out());
  return {std::move(gradients.features), std::move(gradients.prototypes)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> value_and_grad(
    const Tensor& features, const Tensor& prototypes, const Tensor& target,
    const std::optional<Tensor>& class_weights, double upstream, double sigma, double margin,
    double gamma, double diversity_weight, bool detach_focal, int64_t reduction,
    int64_t ignore_index, int64_t regime, bool need_features, bool need_prototypes) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  Tensor loss = empty_loss(p, cpu());
  Tensor saved = empty({saved_numel(p)}, compute_code(p), cpu());
  Gradients gradients(p, prototypes, need_features, need_prototypes, cpu());
  cfal::value_and_grad(p, counted, {&upstream, DType::kFloat64, 0}, kRuntime, loss.data_ptr(),
                       saved.data_ptr(), gradients.features_out(), gradients.prototypes_out());
  return {std::move(loss), std::move(saved), std::move(gradients.features),
          std::move(gradients.prototypes)};
}

Tensor squared_distances(const Tensor& features, const Tensor& prototypes) {
  const Problem p = make_places(features, prototypes);
  Tensor q = empty({p.B, p.K()}, compute_code(p), cpu());
  distances(p, kRuntime, q.data_ptr());
  return q;
}

std::tuple<Tensor, Tensor> squared_distances_backward(const Tensor& grad, const Tensor& features,
                                                      const Tensor& prototypes, bool need_features,
                                                      bool need_prototypes) {
  const Problem p = make_places(features, prototypes);
  const Facts g = facts_of(grad);
  STD_TORCH_CHECK(
      g.dim == 2 && g.sizes[0] == p.B && g.sizes[1] == p.K() && g.dtype == compute_code(p),
      "cfal: grad must have the shape and dtype of the distances");
  Gradients gradients(p, prototypes, need_features, need_prototypes, cpu());
  distances_backward(p, {g.data, dtype_of(g, "grad"), p.B, p.K(), g.strides[0], g.strides[1]},
                     kRuntime, gradients.features_out(), gradients.prototypes_out());
  return {std::move(gradients.features), std::move(gradients.prototypes)};
}

}  // namespace
}  // namespace cfal::torch_door

STABLE_TORCH_LIBRARY_IMPL(cfal, CPU, m) {
  m.impl("forward", TORCH_BOX(&cfal::torch_door::forward));
  m.impl("backward", TORCH_BOX(&cfal::torch_door::backward));
  m.impl("value_and_grad", TORCH_BOX(&cfal::torch_door::value_and_grad));
  m.impl("squared_distances", TORCH_BOX(&cfal::torch_door::squared_distances));
  m.impl("squared_distances_backward", TORCH_BOX(&cfal::torch_door::squared_distances_backward));
}
