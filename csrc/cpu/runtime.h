// What the CPU kernels ask of their host: threads and matrix products. The torch door answers with
// at::parallel_for and torch's BLAS, the NumPy door with std::thread and NumPy's matmul; the
// kernels include neither.
#pragma once

#include <cstdint>

namespace cfal {

struct Runtime {
  // Calls body(begin, end, context) on disjoint ranges that cover [0, tasks), possibly in parallel;
  // ranges of fewer than `grain` tasks are not worth a thread.
  void (*parallel_for)(int64_t tasks, int64_t grain, void (*body)(int64_t, int64_t, void*),
                       void* context) = nullptr;
  // How many ranges may run at once. It decides which way a result is made, never what it is.
  int64_t (*threads)() = nullptr;

  // c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c, row-major, leading dimensions in elements.
  // Called from inside parallel_for, where it must run on the calling thread alone: results then do
  // not depend on the number of threads.
  void (*gemm_f32)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const float* a,
                   int64_t lda, const float* b, int64_t ldb, double beta, float* c,
                   int64_t ldc) = nullptr;
  void (*gemm_f64)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                   int64_t lda, const double* b, int64_t ldb, double beta, double* c,
                   int64_t ldc) = nullptr;
};

}  // namespace cfal
