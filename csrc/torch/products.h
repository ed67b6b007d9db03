// Matrix products by the libraries that torch brings, with the signature of
// cfal::Runtime::gemm_f32 and gemm_f64.
#pragma once

#include <cstdint>

namespace cfal::torch_door {

// c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c, row-major, leading dimensions in elements;
// beta = 0 does not read c. To be called inside a parallel region, where it stays on the calling
// thread; its bits do not depend on the number of threads that torch is set to.
template <class T>
void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, double beta, T* c, int64_t ldc);

extern template void gemm<float>(bool, bool, int64_t, int64_t, int64_t, double, const float*,
                                 int64_t, const float*, int64_t, double, float*, int64_t);
extern template void gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*,
                                  int64_t, const double*, int64_t, double, double*, int64_t);

}  // namespace cfal::torch_door
