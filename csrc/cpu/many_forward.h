#pragma once
#include "few_forward.h"
namespace cfal {
namespace CFAL_ISA {
template <class T>
void many_forward(const Problem& p, int64_t n, const Runtime& r, T* l, T* s) {
  few_forward<T>(p, n, r, l, s);
}
}  // namespace CFAL_ISA
}  // namespace cfal
