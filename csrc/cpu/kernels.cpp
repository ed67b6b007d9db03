// The kernels for one instruction set: this file is compiled once for each, with CFAL_ISA naming
// the namespace.
#include "all_distances.h"
#include "few_value_and_grad.h"
#include "isa.h"
#include "many_backward.h"
#include "many_forward.h"

namespace cfal {
namespace CFAL_ISA {
namespace {

template <class T>
void forward_as(const Problem& p, int64_t counted_rows, const Runtime& runtime, void* loss,
                void* saved) {
  T* const typed_loss = static_cast<T*>(loss);
  T* const typed_saved = static_cast<T*>(saved);
  if (p.regime == Regime::kFew)
    few_forward(p, counted_rows, PrototypePanels<T>(p), runtime, typed_loss, typed_saved);
  else
    many_forward<T>(p, counted_rows, runtime, typed_loss, typed_saved);
}

template <class T>
void backward_as(const Problem& p, int64_t counted_rows, const UpstreamView& grad_loss,
                 const void* saved, const Runtime& runtime, void* grad_features,
                 void* grad_prototypes) {
  const T* const typed = static_cast<const T*>(saved);
  if (p.regime == Regime::kFew)
    few_backward(p, grad_loss, typed, PrototypePanels<T>(p), runtime, grad_features,
                 grad_prototypes);
  else
    ManyBackward<T>(p, counted_rows, grad_loss, typed, grad_features, grad_prototypes).run(runtime);
}

template <class T>
void value_and_grad_as(const Problem& p, int64_t counted_rows, const UpstreamView& grad_loss,
                       const Runtime& runtime, void* loss, void* saved, void* grad_features,
                       void* grad_prototypes) {
  if (p.regime == Regime::kFew) {
    few_value_and_grad(p, counted_rows, grad_loss, runtime, static_cast<T*>(loss),
                       static_cast<T*>(saved), grad_features, grad_prototypes);
    return;
  }
  forward_as<T>(p, counted_rows, runtime, loss, saved);
  backward_as<T>(p, counted_rows, grad_loss, saved, runtime, grad_features, grad_prototypes);
}

}  // namespace

void forward(const Problem& p, int64_t counted_rows, const Runtime& runtime, void* loss,
             void* saved) {
  if (computes_in_double(p))
    forward_as<double>(p, counted_rows, runtime, loss, saved);
  else
    forward_as<float>(p, counted_rows, runtime, loss, saved);
}

void backward(const Problem& p, int64_t counted_rows, const UpstreamView& grad_loss,
              const void* saved, const Runtime& runtime, void* grad_features,
              void* grad_prototypes) {
  if (computes_in_double(p))
    backward_as<double>(p, counted_rows, grad_loss, saved, runtime, grad_features, grad_prototypes);
  else
    backward_as<float>(p, counted_rows, grad_loss, saved, runtime, grad_features, grad_prototypes);
}

void value_and_grad(const Problem& p, int64_t counted_rows, const UpstreamView& grad_loss,
                    const Runtime& runtime, void* loss, void* saved, void* grad_features,
                    void* grad_prototypes) {
  if (computes_in_double(p))
    value_and_grad_as<double>(p, counted_rows, grad_loss, runtime, loss, saved, grad_features,
                              grad_prototypes);
  else
    value_and_grad_as<float>(p, counted_rows, grad_loss, runtime, loss, saved, grad_features,
                             grad_prototypes);
}

void distances(const Problem& p, const Runtime& runtime, void* q) {
  if (computes_in_double(p))
    all_distances(p, runtime, static_cast<double*>(q));
  else
    all_distances(p, runtime, static_cast<float*>(q));
}

void distances_backward(const Problem& p, const MatrixView& g, const Runtime& runtime,
                        void* grad_features, void* grad_prototypes) {
  if (computes_in_double(p))
    all_distances_backward<double>(p, g, runtime, grad_features, grad_prototypes);
  else
    all_distances_backward<float>(p, g, runtime, grad_features, grad_prototypes);
}

}  // namespace CFAL_ISA
}  // namespace cfal
