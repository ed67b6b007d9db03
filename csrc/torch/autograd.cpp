// torch.ops.cfal.loss: the autograd function of cfal_kernels/autograd.py (FusedLoss) once more, in
// C++, where a step on a small batch spends less on being recorded and called back. It wraps
// torch.ops.cfal.forward and .backward and knows no kernel.
//
// Autograd is not part of the stable ABI. This object therefore serves exactly the torch whose
// headers it was compiled with, and the Python function serves every other.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace cfal::torch_door {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Pair = std::tuple<Tensor, Tensor>;
using Forward = Pair(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                     double, double, double, double, bool, int64_t, int64_t, int64_t, bool);
using Backward = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const std::optional<Tensor>&, double, double, double, double, bool, int64_t,
                      int64_t, int64_t, bool, bool);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// [C, D] prototypes as the operators take them.
Tensor with_centres(const Tensor& prototypes) {
  return prototypes.dim() == 2 ? prototypes.unsqueeze(1) : prototypes;
}

// Passes a gradient through and refuses to be differentiated. `sources` are what a second
// derivative would be taken of.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor&, const Tensor&,
                        const Tensor&) {
    return grad.view_as(grad);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "cfal_loss: the compiled kernels have no second derivative; use "
                "backend='reference' to differentiate a gradient of this loss");
  }
};

// Saves coefficients of the gradient, never a gradient: a second backward repeats the first.
struct FusedLoss : torch::autograd::Function<FusedLoss> {
  static Tensor forward(AutogradContext* ctx, const Tensor& features, const Tensor& prototypes,
                        const Tensor& target, const std::optional<Tensor>& class_weights,
                        double sigma, double margin, double gamma, double diversity_weight,
                        bool detach_focal, int64_t reduction, int64_t ignore_index,
                        int64_t regime) {
    static const auto op = find<Forward>("cfal::forward");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, saved] =
        op.call(features, with_centres(prototypes), target, class_weights, sigma, margin, gamma,
                diversity_weight, detach_focal, reduction, ignore_index, regime, true);
    ctx->save_for_backward({features, prototypes, target, class_weights.value_or(Tensor()), saved});
    ctx->saved_data["reals"] = std::vector<double>{sigma, margin, gamma, diversity_weight};
    ctx->saved_data["integers"] =
        std::vector<int64_t>{detach_focal ? 1 : 0, reduction, ignore_index, regime};
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &features = saved[0], &prototypes = saved[1];
    auto [grad_features, grad_prototypes] = gradients(ctx, grads[0], saved);
    variable_list all(12);  // one for each argument of forward
    const auto refuse = [&](const Tensor& grad) {
      return NoSecondDerivative::apply(grad, grads[0], features, prototypes);
    };
    // Grad mode is on in a backward only under create_graph=True.
    const bool differentiated = at::GradMode::is_enabled();
    if (ctx->needs_input_grad(0)) all[0] = differentiated ? refuse(grad_features) : grad_features;
    if (ctx->needs_input_grad(1))
      all[1] = differentiated ? refuse(grad_prototypes) : grad_prototypes;
    return all;
  }

 private:
  static Pair gradients(AutogradContext* ctx, const Tensor& grad, const variable_list& saved) {
    static const auto op = find<Backward>("cfal::backward");
    const std::vector<double> x = ctx->saved_data["reals"].toDoubleVector();
    const std::vector<int64_t> n = ctx->saved_data["integers"].toIntVector();
    std::optional<Tensor> class_weights;
    if (saved[3].defined()) class_weights = saved[3];
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Pair both = op.call(grad, saved[4], saved[0], with_centres(saved[1]), saved[2], class_weights,
                        x[0], x[1], x[2], x[3], n[0] != 0, n[1], n[2], n[3],
                        ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    if (saved[1].dim() == 2 && ctx->needs_input_grad(1))
      std::get<1>(both) = std::get<1>(both).squeeze(1);
    return both;
  }
};

Tensor loss(const Tensor& features, const Tensor& prototypes, const Tensor& target,
            const std::optional<Tensor>& class_weights, double sigma, double margin, double gamma,
            double diversity_weight, bool detach_focal, int64_t reduction, int64_t ignore_index,
            int64_t regime) {
  return FusedLoss::apply(features, prototypes, target, class_weights, sigma, margin, gamma,
                          diversity_weight, detach_focal, reduction, ignore_index, regime);
}

// Where torch has autograd switched off below grad mode: in inference mode, whatever enable_grad
// says, and inside of a __torch_dispatch__. Records nothing, as torch's own operators do there.
Tensor loss_below_autograd(const Tensor& features, const Tensor& prototypes, const Tensor& target,
                           const std::optional<Tensor>& class_weights, double sigma, double margin,
                           double gamma, double diversity_weight, bool detach_focal,
                           int64_t reduction, int64_t ignore_index, int64_t regime) {
  static const auto op = find<Forward>("cfal::forward");
  return std::get<0>(op.call(features, with_centres(prototypes), target, class_weights, sigma,
                             margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
                             regime, false));
}

}  // namespace
}  // namespace cfal::torch_door

TORCH_LIBRARY_FRAGMENT(cfal, m) {
  m.def(
      "loss(Tensor features, Tensor prototypes, Tensor target, Tensor? class_weights, float sigma, "
      "float margin, float gamma, float diversity_weight, bool detach_focal, int reduction, int "
      "ignore_index, int regime) -> Tensor");
}

TORCH_LIBRARY_IMPL(cfal, Autograd, m) { m.impl("loss", cfal::torch_door::loss); }
TORCH_LIBRARY_IMPL(cfal, CompositeExplicitAutograd, m) {
  m.impl("loss", cfal::torch_door::loss_below_autograd);
}
