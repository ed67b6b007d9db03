// What the autograd function guesses of the backward while it is in the forward: that the upstream
// gradient of the loss will be what it was in the step before (1 for a loss that is not scaled, a
// gradient scaler's scale, a weight). Where that holds, loss and gradients are made in one pass
// over the features. A guess decides when a gradient is computed, never what it is.
#pragma once

#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>

namespace cfal::torch_door {

// A tensor whose numbers stand in memory: no subclass, no wrapper of a transform, no pending sign.
inline bool is_plain_cpu(const at::Tensor& tensor) {
  return tensor.is_cpu() && !at::isTensorSubclassLike(tensor) && !tensor._is_zerotensor() &&
         !tensor.is_neg();
}

// The upstream gradient of a reduced loss as a number, unless it is none.
inline std::optional<double> value_of(const at::Tensor& upstream) {
  if (!is_plain_cpu(upstream) || upstream.dim() != 0) return std::nullopt;
  if (upstream.scalar_type() == at::kFloat) return *upstream.const_data_ptr<float>();
  if (upstream.scalar_type() == at::kDouble) return *upstream.const_data_ptr<double>();
  return std::nullopt;
}

// One module's loss, by its prototypes. Modules may share a slot, and then guess worse.
class UpstreamGuess {
 public:
  static UpstreamGuess& of(const at::Tensor& prototypes) {
    static UpstreamGuess slots[16];
    const auto address = reinterpret_cast<uintptr_t>(prototypes.unsafeGetTensorImpl());
    return slots[address / 64 % 16];
  }

  // In the forward: the upstream gradient to prepare for, unless the last guesses came to nothing.
  std::optional<double> take() {
    if (unused_.load(std::memory_order_relaxed) >= kMostUnused) return std::nullopt;
    unused_.fetch_add(1, std::memory_order_relaxed);
    return value_.load(std::memory_order_relaxed);
  }

  // After a forward that failed: nothing was prepared.
  void untake() { unused_.fetch_sub(1, std::memory_order_relaxed); }

  // In the backward: what came, and whether prepared gradients of it could be handed out. A value
  // is guessed after it came twice in a row.
  void saw(double upstream, bool usable) {
    const bool same = value_.exchange(upstream, std::memory_order_relaxed) == upstream;
    unused_.store(same && usable ? 0 : kMostUnused, std::memory_order_relaxed);
  }

 private:
  static constexpr int kMostUnused = 2;
  std::atomic<double> value_{1.0};
  std::atomic<int> unused_{0};
};

// Whether an ordinary step on the CPU is under way. Hooks on saved tensors want to decide what is
// kept until the backward, a dispatch mode to see the operators it knows.
inline bool may_prepare(std::initializer_list<const at::Tensor*> tensors) {
  for (const at::Tensor* tensor : tensors)
    if (!is_plain_cpu(*tensor)) return false;
  return !at::SavedTensorDefaultHooks::get_hooks().has_value() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

}  // namespace cfal::torch_door
