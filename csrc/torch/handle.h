// Operators of torch.ops.cfal as C++ calls them, through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

namespace cfal::torch_door {

// features, prototypes, target, class_weights, sigma, margin, gamma, diversity_weight,
// detach_focal, reduction, ignore_index, regime
using Loss = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        const std::optional<at::Tensor>&, double, double, double, double, bool,
                        int64_t, int64_t, int64_t);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace cfal::torch_door
