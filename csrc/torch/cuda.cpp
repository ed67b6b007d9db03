// The CUDA implementations of torch.ops.cfal: allocate outputs and workspace, call the kernels on
// the current stream. The schemas are defined by cfal_torch_cpu, which a CUDA build of torch loads
// too.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <tuple>
#include <utility>

#include "../cuda/cfal.h"
#include "device.h"
#include "outputs.h"
#include "problem.h"

namespace cfal::torch_door {
namespace {

// Where a call runs: the device of the features, current while this lives, and its current stream.
class Call {
 public:
  Call(const Tensor& features, std::initializer_list<const Tensor*> others)
      : type_(type_of(features)),
        index_(index_of(features)),
        guard_(index_),
        stream_(current_stream(index_)),
        device_(cuda::device_facts(index_)) {
    for (const Tensor* other : others)
      STD_TORCH_CHECK(type_of(*other) == type_ && index_of(*other) == index_,
                      "cfal: all tensors must be on one device");
  }

  Place place() const { return {type_, index_}; }
  // Memory of the caching allocator: it may be given to a later call on this stream once this one
  // has been queued.
  Tensor workspace(int64_t doubles) const { return empty({doubles}, codes().double_, place()); }

  cuda::Stream stream() const { return stream_; }
  const cuda::Device& device() const { return device_; }

 private:
  static int32_t type_of(const Tensor& tensor) {
    int32_t type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
  }
  static int32_t index_of(const Tensor& tensor) {
    int32_t index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
    return index;
  }

  const int32_t type_, index_;
  const DeviceGuard guard_;
  const cuda::Stream stream_;
  const cuda::Device& device_;
};

double* doubles_of(const Tensor& workspace) { return static_cast<double*>(workspace.data_ptr()); }

void check_regime(const Problem& p) {
  STD_TORCH_CHECK(p.regime == Regime::kFew && p.K() <= cuda::kMostPrototypes,
                  "cfal: the CUDA kernels serve up to ", cuda::kMostPrototypes, " prototypes, got ",
                  p.K());
}

std::tuple<Tensor, Tensor> forward(const Tensor& features, const Tensor& prototypes,
                                   const Tensor& target, const std::optional<Tensor>& class_weights,
                                   double sigma, double margin, double gamma,
                                   double diversity_weight, bool detach_focal, int64_t reduction,
                                   int64_t ignore_index, int64_t regime, bool save) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  check_regime(p);
  const Call call(features,
                  {&prototypes, &target, class_weights.has_value() ? &*class_weights : &target});
  Tensor loss = empty_loss(p, call.place());
  Tensor saved = empty({save ? saved_numel(p) : 0}, compute_code(p), call.place());
  const Tensor workspace = call.workspace(cuda::forward_workspace(p, call.device()));
  cuda::forward(p, call.device(), call.stream(), loss.data_ptr(), save ? saved.data_ptr() : nullptr,
                doubles_of(workspace));
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
  check_regime(p);
  const Facts coefficients = facts_of(saved), upstream = facts_of(grad_loss);
  const int32_t type = compute_code(p);
  STD_TORCH_CHECK(coefficients.dim == 1 && coefficients.sizes[0] == saved_numel(p) &&
                      coefficients.strides[0] == 1 && coefficients.dtype == type,
                  "cfal: saved does not belong to these inputs");
  const bool per_row = p.reduction == Reduction::kNone;
  STD_TORCH_CHECK(upstream.dim == (per_row ? 1 : 0) && (!per_row || upstream.sizes[0] == p.B),
                  "cfal: grad_loss must have the shape of the loss");
  const DType upstream_type = dtype_of(upstream, "grad_loss");
  STD_TORCH_CHECK(upstream_type == DType::kFloat32 || upstream_type == DType::kFloat64,
                  "cfal: grad_loss must be float32 or float64");
  const Call call(features, {&prototypes, &target, &saved, &grad_loss});
  Gradients gradients(p, prototypes, need_features, need_prototypes, call.place());
  const Tensor workspace =
      call.workspace(cuda::backward_workspace(p, call.device(), need_prototypes));
  cuda::backward(p, call.device(), call.stream(),
                 {upstream.data, upstream_type, per_row ? upstream.strides[0] : 0},
                 coefficients.data, gradients.features_out(), gradients.prototypes_out(),
                 doubles_of(workspace));
  return {std::move(gradients.features), std::move(gradients.prototypes)};
}

}  // namespace
}  // namespace cfal::torch_door

CFAL_DEVICE_LIBRARY(m) {
  m.impl("forward", TORCH_BOX(&cfal::torch_door::forward));
  m.impl("backward", TORCH_BOX(&cfal::torch_door::backward));
}
