// torch.ops.cfal.loss: the autograd function of cfal_kernels/autograd.py (FusedLoss) once more, in
// C++, where a step on a small batch spends less on being recorded and called back. It wraps
// torch.ops.cfal.forward, .backward and .value_and_grad, and knows no kernel.
//
// Autograd is not part of the stable ABI. This object therefore serves exactly the torch whose
// headers it was compiled with, and the Python function serves every other.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../core/problem.h"
#include "guess.h"
#include "handle.h"

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

using ValueAndGrad = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, double,
    double, double, double, bool, int64_t, int64_t, int64_t, bool, bool);

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

// Saves coefficients of the gradient: a second backward repeats the first. Gradients that were
// prepared in the forward are saved beside them, for the one backward that ends the graph: whoever
// gets a gradient may change it.
struct FusedLoss : torch::autograd::Function<FusedLoss> {
  // Indices into the saved variables.
  enum : size_t { kFeatures, kPrototypes, kTarget, kWeights, kSaved, kGradients };

  static Tensor forward(AutogradContext* ctx, const Tensor& features, const Tensor& prototypes,
                        const Tensor& target, const std::optional<Tensor>& class_weights,
                        double sigma, double margin, double gamma, double diversity_weight,
                        bool detach_focal, int64_t reduction, int64_t ignore_index,
                        int64_t regime) {
    static const auto op = find<Forward>("cfal::forward");
    static const auto at_once = find<ValueAndGrad>("cfal::value_and_grad");
    const Tensor& weights = class_weights.has_value() ? *class_weights : Tensor();
    std::optional<double> upstream;
    if (regime == kFew && reduction != kNone &&
        may_prepare({&features, &prototypes, &target, class_weights ? &weights : &features}))
      upstream = UpstreamGuess::of(prototypes).take();
    ctx->saved_data["reals"] =
        std::vector<double>{sigma, margin, gamma, diversity_weight, upstream.value_or(0.0)};
    ctx->saved_data["integers"] =
        std::vector<int64_t>{detach_focal ? 1 : 0, reduction, ignore_index, regime};
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (upstream) {
      std::tuple<Tensor, Tensor, Tensor, Tensor> all;
      try {
        all = at_once.call(features, prototypes, target, class_weights, *upstream, sigma, margin,
                           gamma, diversity_weight, detach_focal, reduction, ignore_index, regime,
                           features.requires_grad(), prototypes.requires_grad());
      } catch (...) {
        UpstreamGuess::of(prototypes).untake();
        throw;
      }
      auto& [loss, saved, grad_features, grad_prototypes] = all;
      ctx->save_for_backward({features, prototypes, target, weights, std::move(saved),
                              std::move(grad_features), std::move(grad_prototypes)});
      return loss;
    }
    auto [loss, saved] =
        op.call(features, prototypes, target, class_weights, sigma, margin, gamma, diversity_weight,
                detach_focal, reduction, ignore_index, regime, true);
    ctx->save_for_backward({features, prototypes, target, weights, std::move(saved)});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &features = saved[kFeatures], &prototypes = saved[kPrototypes];
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
  static constexpr auto kFew = static_cast<int64_t>(Regime::kFew);
  static constexpr auto kNone = static_cast<int64_t>(Reduction::kNone);

  static Pair gradients(AutogradContext* ctx, const Tensor& grad, const variable_list& saved) {
    static const auto op = find<Backward>("cfal::backward");
    const auto reals = ctx->saved_data["reals"].toDoubleList();
    const auto integers = ctx->saved_data["integers"].toIntList();
    const Tensor& prototypes = saved[kPrototypes];
    const bool need_features = ctx->needs_input_grad(0), need_prototypes = ctx->needs_input_grad(1);
    std::optional<Tensor> class_weights;
    if (saved[kWeights].defined()) class_weights = saved[kWeights];
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Pair both;
    if (is_prepared(reals[4], integers[1], integers[3], grad, saved)) {
      both = {saved[kGradients], saved[kGradients + 1]};
    } else {
      both = op.call(grad, saved[kSaved], saved[kFeatures], prototypes, saved[kTarget],
                     class_weights, reals[0], reals[1], reals[2], reals[3], integers[0] != 0,
                     integers[1], integers[2], integers[3], need_features, need_prototypes);
    }
    return both;
  }

  // Whether gradients were prepared, and for `grad`, and nobody will ask again. Tells the guess
  // what came.
  static bool is_prepared(double guessed, int64_t reduction, int64_t regime, const Tensor& grad,
                          const variable_list& saved) {
    if (regime != kFew || reduction == kNone) return false;
    const std::optional<double> upstream = value_of(grad);
    if (!upstream) return false;
    const bool ends = !torch::autograd::get_current_graph_task_keep_graph();
    UpstreamGuess::of(saved[kPrototypes]).saw(*upstream, ends);
    return saved.size() > kGradients && *upstream == guessed && ends;
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
  return std::get<0>(op.call(features, prototypes, target, class_weights, sigma, margin, gamma,
                             diversity_weight, detach_focal, reduction, ignore_index, regime,
                             false));
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
