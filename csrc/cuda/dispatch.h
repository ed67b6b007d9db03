// From a problem to the one kernel and configuration that serve it. `launch` is what starts a
// kernel: CUDA (cfal.cu), or the emulation on the CPU (tests/cpp).
#pragma once

#include "few_backward.h"
#include "few_forward.h"

namespace cfal::cuda {

// Calls visit.template operator()<L>() for the loader of the access, dtype and compute type.
template <class Visitor>
void visit_loader(const Problem& p, Access access, const Visitor& visit) {
  if (access == Access::kElements) {
    if (computes_in_double(p))
      visit.template operator()<Elements<double>>();
    else
      visit.template operator()<Elements<float>>();
    return;
  }
  switch (p.features.dtype) {
    case DType::kFloat16:
      return visit.template operator()<Vectors<__half, float>>();
    case DType::kBFloat16:
      return visit.template operator()<Vectors<__nv_bfloat16, float>>();
    case DType::kFloat32:
      return visit.template operator()<Vectors<float, float>>();
    default:
      return visit.template operator()<Vectors<double, double>>();
  }
}

// launch(kernel, blocks, threads, shared bytes, arguments)
template <class Launch>
void dispatch(const ForwardArguments& arguments, const Launch& launch) {
  visit_loader(arguments.p, arguments.plan.access, [&]<class L>() {
    launch(&few_forward<L>, arguments.plan.blocks, kForwardWarps * kWarp,
           arguments.plan.shared_bytes, arguments);
  });
}

template <class Launch>
void dispatch(const BackwardArguments& arguments, const Launch& launch) {
  visit_loader(arguments.p, arguments.plan.access, [&]<class L>() {
    launch(&few_backward<L>, arguments.plan.tile_groups * arguments.plan.chunks,
           arguments.plan.warps * kWarp, arguments.plan.shared_bytes, arguments);
  });
}

}  // namespace cfal::cuda
