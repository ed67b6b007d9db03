#pragma once
#include "few_backward.h"
namespace cfal {
namespace CFAL_ISA {
template <class T>
struct ManyBackward {
  ManyBackward(const Problem&, int64_t, const UpstreamView&, const T*, void*, void*) {}
  void run(const Runtime&) {}
};
}  // namespace CFAL_ISA
}  // namespace cfal
