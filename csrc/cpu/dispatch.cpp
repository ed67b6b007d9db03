// Chooses the instruction set once per process, from what the processor offers and CFAL_CPU_ISA
// allows.
#include <cstdlib>
#include <cstring>

#include "isa.h"

namespace cfal {
namespace {

Kernels choose() {
#if defined(CFAL_X86_VARIANTS)
  const char* cap = std::getenv("CFAL_CPU_ISA");
  const bool baseline_only = cap != nullptr && std::strcmp(cap, "baseline") == 0;
  const bool avx2_at_most = cap != nullptr && std::strcmp(cap, "avx2") == 0;
  // The feature levels of the x86-64 psABI, as in -march=x86-64-v3 and -v4.
  if (!baseline_only && !avx2_at_most && __builtin_cpu_supports("x86-64-v4"))
    return CFAL_KERNELS(avx512);
  if (!baseline_only && __builtin_cpu_supports("x86-64-v3")) return CFAL_KERNELS(avx2);
#endif
  return CFAL_KERNELS(baseline);
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace

void forward(const Problem& problem, int64_t counted_rows, const Runtime& runtime, void* loss,
             void* saved) {
  kernels().forward(problem, counted_rows, runtime, loss, saved);
}

void backward(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss,
              const void* saved, const Runtime& runtime, void* grad_features,
              void* grad_prototypes) {
  kernels().backward(problem, counted_rows, grad_loss, saved, runtime, grad_features,
                     grad_prototypes);
}

void value_and_grad(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss,
                    const Runtime& runtime, void* loss, void* saved, void* grad_features,
                    void* grad_prototypes) {
  kernels().value_and_grad(problem, counted_rows, grad_loss, runtime, loss, saved, grad_features,
                           grad_prototypes);
}

void distances(const Problem& problem, const Runtime& runtime, void* q) {
  kernels().distances(problem, runtime, q);
}

void distances_backward(const Problem& problem, const MatrixView& g, const Runtime& runtime,
                        void* grad_features, void* grad_prototypes) {
  kernels().distances_backward(problem, g, runtime, grad_features, grad_prototypes);
}

const char* active_isa() { return kernels().name; }

const char* compiled_isas() {
#if defined(CFAL_X86_VARIANTS)
  return "baseline,avx2,avx512";
#else
  return "baseline";
#endif
}

}  // namespace cfal
