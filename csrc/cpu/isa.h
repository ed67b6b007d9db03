// The entry points of each instruction set that the build compiled (CFAL_X86_VARIANTS is set by
// CMakeLists.txt on x86-64; CFAL_WIDE_VARIANT for the sanitizers).
#pragma once

#include "cfal.h"

#define CFAL_DECLARE_ISA(ISA)                                                                      \
  namespace cfal {                                                                                 \
  namespace ISA {                                                                                  \
  void forward(const Problem& problem, int64_t counted_rows, const Runtime& runtime, void* loss,   \
               void* saved);                                                                       \
  void backward(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss,       \
                const void* saved, const Runtime& runtime, void* grad_features,                    \
                void* grad_prototypes);                                                            \
  void value_and_grad(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss, \
                      const Runtime& runtime, void* loss, void* saved, void* grad_features,        \
                      void* grad_prototypes);                                                      \
  void distances(const Problem& problem, const Runtime& runtime, void* q);                         \
  void distances_backward(const Problem& problem, const MatrixView& g, const Runtime& runtime,     \
                          void* grad_features, void* grad_prototypes);                             \
  }                                                                                                \
  }

CFAL_DECLARE_ISA(baseline)
#if defined(CFAL_X86_VARIANTS)
CFAL_DECLARE_ISA(avx2)
CFAL_DECLARE_ISA(avx512)
#endif
#if defined(CFAL_WIDE_VARIANT)
CFAL_DECLARE_ISA(wide)
#endif

#undef CFAL_DECLARE_ISA

namespace cfal {

struct Kernels {
  const char* name;
  decltype(&baseline::forward) forward;
  decltype(&baseline::backward) backward;
  decltype(&baseline::value_and_grad) value_and_grad;
  decltype(&baseline::distances) distances;
  decltype(&baseline::distances_backward) distances_backward;
};

#define CFAL_KERNELS(ISA)                                                       \
  ::cfal::Kernels {                                                             \
    #ISA, &ISA::forward, &ISA::backward, &ISA::value_and_grad, &ISA::distances, \
        &ISA::distances_backward                                                \
  }

}  // namespace cfal
