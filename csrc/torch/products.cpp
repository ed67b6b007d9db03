#include "products.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// MKL's number of threads for the calling thread, 0 for the global one; returns the one before.
// Absent where torch was built with another BLAS.
#if defined(__ELF__)
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);
// What AOTInductor's compiled models call for a linear layer; its header is not for extensions.
// Absent where torch was built without oneDNN.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, const char* attribute,
    const double** scalars, int64_t scalars_length, const char** algorithm,
    AtenTensorHandle* result);
#else
static int (*const MKL_Set_Num_Threads_Local)(int) = nullptr;
static AOTITorchError (*const aoti_torch_cpu__linear_pointwise)(AtenTensorHandle, AtenTensorHandle,
                                                                AtenTensorHandle*, const char*,
                                                                const double**, int64_t,
                                                                const char**,
                                                                AtenTensorHandle*) = nullptr;
#endif

namespace cfal::torch_door {
namespace {

using torch::stable::Tensor;

// Inside a parallel region MKL runs on one thread, but still picks its algorithm, and with it the
// rounding, by the number it is set to.
class OneThread {
 public:
  OneThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_;
};

// A view of memory that the kernels own, for one matrix product.
template <class T>
Tensor matrix(const T* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  const int64_t sizes[2] = {rows, cols}, strides[2] = {row_stride, col_stride};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<T*>(data), 2, sizes, strides, 0,
      sizeof(T) == 8 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// MKL takes its AVX2 kernels on processors that are not Intel's, at half the rate of oneDNN's
// AVX-512 ones; on Intel's the two are alike, and MKL needs no copies.
bool prefers_onednn() {
#if defined(__x86_64__) && defined(__ELF__)
  static const bool answer = [] {
    unsigned level, b, c, d;
    if (!aoti_torch_cpu__linear_pointwise || !__get_cpuid(0, &level, &b, &c, &d)) return false;
    const bool intel = b == signature_INTEL_ebx && c == signature_INTEL_ecx;
    return !intel && __builtin_cpu_supports("avx512f");
  }();
  return answer;
#else
  return false;
#endif
}

// out [cols, rows] = a [rows, cols]^T, in patches that stay in the L1 cache.
void transpose(const float* a, int64_t lda, int64_t rows, int64_t cols, float* out) {
  constexpr int64_t kPatch = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kPatch)
    for (int64_t c0 = 0; c0 < cols; c0 += kPatch)
      for (int64_t c = c0; c < c0 + kPatch && c < cols; ++c)
        for (int64_t r = r0; r < r0 + kPatch && r < rows; ++r) out[c * rows + r] = a[r * lda + c];
}

// A tensor of its own, [rows, cols] contiguous.
Tensor contiguous(int64_t rows, int64_t cols) {
  const int64_t sizes[2] = {rows, cols}, strides[2] = {cols, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, sizes, strides, aoti_torch_dtype_float32(),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

float* values(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// c [m, n] = scale x [m, k] weight [n, k]^T + kept c, by torch's linear layer, which returns a
// tensor of its own.
void add_linear(const Tensor& x, const Tensor& weight, int64_t m, int64_t n, float scale,
                float kept, float* c, int64_t ldc) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(x.get(), weight.get(), nullptr, "none",
                                                          nullptr, 0, nullptr, &handle));
  const Tensor product(handle);
  for (int64_t r = 0; r < m; ++r) {
    float* const out = c + r * ldc;
    const float* const from = values(product) + r * n;
    if (kept == 0.0f)
      for (int64_t j = 0; j < n; ++j) out[j] = scale * from[j];
    else
      for (int64_t j = 0; j < n; ++j) out[j] = scale * from[j] + kept * out[j];
  }
}

// In panels of b's rows, which bound what is copied, packed and returned. The layer falls back to a
// plain loop unless its weight is dense, in either order.
void gemm_onednn(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, double beta, float* c, int64_t ldc) {
  constexpr int64_t kPanel = 1024;
  const int64_t rows = tb ? n : k, cols = tb ? k : n, most = rows < kPanel ? rows : kPanel;
  const auto scale = static_cast<float>(alpha), kept = static_cast<float>(beta);
  const Tensor dense = contiguous(ldb == cols ? 0 : most, cols);
  const Tensor left = contiguous(ta ? m : 0, tb ? k : most);
  if (ta && tb) transpose(a, lda, k, m, values(left));
  for (int64_t first = 0; first < rows; first += kPanel) {
    const int64_t size = rows - first < kPanel ? rows - first : kPanel;
    const float* panel = b + first * ldb;
    if (ldb != cols) {
      for (int64_t r = 0; r < size; ++r)
        __builtin_memcpy(values(dense) + r * cols, panel + r * ldb,
                         static_cast<size_t>(cols) * sizeof(float));
      panel = values(dense);
    }
    if (tb) {  // columns [first, first + size) of c
      const Tensor x = ta ? matrix(values(left), m, k, k, 1) : matrix(a, m, k, lda, 1);
      add_linear(x, matrix(panel, size, k, k, 1), m, size, scale, kept, c + first, ldc);
      continue;
    }
    // All of c, from terms [first, first + size) of its sums.
    if (ta) transpose(a + first * lda, lda, size, m, values(left));
    const Tensor x =
        ta ? matrix(values(left), m, size, size, 1) : matrix(a + first, m, size, lda, 1);
    add_linear(x, matrix(panel, n, size, 1, n), m, n, scale, first > 0 ? 1.0f : kept, c, ldc);
  }
}

}  // namespace

template <class T>
void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, double beta, T* c, int64_t ldc) {
  if constexpr (sizeof(T) == 4)
    if (prefers_onednn()) return gemm_onednn(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  const Tensor left = ta ? matrix(a, m, k, 1, lda) : matrix(a, m, k, lda, 1);
  const Tensor right = tb ? matrix(b, k, n, 1, ldb) : matrix(b, k, n, ldb, 1);
  const Tensor out = matrix(c, m, n, ldc, 1);
  const OneThread one_thread;
  // Straight to the CPU kernel: no autograd or dispatch state is looked up, which threads of a pool
  // would not share.
  if (alpha == 1.0 && beta == 0.0) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  } else {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), beta, alpha));
  }
}

template void gemm<float>(bool, bool, int64_t, int64_t, int64_t, double, const float*, int64_t,
                          const float*, int64_t, double, float*, int64_t);
template void gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                           const double*, int64_t, double, double*, int64_t);

}  // namespace cfal::torch_door
