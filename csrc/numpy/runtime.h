// Threads and matrix products for the kernels where there is no torch: std::thread, and NumPy's
// matmul, so that the BLAS is the one NumPy brings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "../cpu/runtime.h"

namespace cfal::numpy_door {

// One call's threads. Errors of a thread are kept, since no exception may leave it: rethrow() after
// the kernels. The callbacks take no context, so the call in progress is found per thread.
class HostThreads {
 public:
  explicit HostThreads(int threads)
      : threads_(threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency())) {
    current() = this;
  }
  ~HostThreads() { current() = nullptr; }
  HostThreads(const HostThreads&) = delete;
  HostThreads& operator=(const HostThreads&) = delete;

  const Runtime& runtime() const {
    static const Runtime runtime = {&parallel_for, &threads, &gemm<float>, &gemm<double>};
    return runtime;
  }

  // Call with the GIL held.
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static HostThreads*& current() {
    thread_local HostThreads* host = nullptr;
    return host;
  }

  void keep_error() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }

  static int64_t threads() { return current()->threads_; }

  // Static contiguous ranges, one a thread: the partition depends on nothing but the counts.
  static void parallel_for(int64_t tasks, int64_t grain, void (*body)(int64_t, int64_t, void*),
                           void* context) {
    HostThreads* const host = current();
    const int64_t most = grain > 0 ? (tasks + grain - 1) / grain : tasks;
    const int64_t count = std::max<int64_t>(1, std::min<int64_t>(host->threads_, most));
    auto work = [=](int64_t part) {
      HostThreads* const outer = current();
      current() = host;
      try {
        body(tasks * part / count, tasks * (part + 1) / count, context);
      } catch (...) {
        host->keep_error();
      }
      current() = outer;
    };
    std::vector<std::thread> workers;
    int64_t part = 1;
    try {
      workers.reserve(count - 1);
      for (; part < count; ++part) workers.emplace_back(work, part);
    } catch (...) {
      // No more threads to be had: the rest runs here.
      for (; part < count; ++part) work(part);
    }
    work(0);
    for (std::thread& worker : workers) worker.join();
  }

  template <class T>
  static void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const T* a,
                   int64_t lda, const T* b, int64_t ldb, double beta, T* c, int64_t ldc) {
    HostThreads* const host = current();
    const pybind11::gil_scoped_acquire acquire;
    try {
      const auto left = view(a, m, k, ta ? 1 : lda, ta ? lda : 1);
      const auto right = view(b, k, n, tb ? 1 : ldb, tb ? ldb : 1);
      const auto out = view(c, m, n, ldc, 1);
      const auto numpy = pybind11::module_::import("numpy");
      if (alpha == 1.0 && beta == 0.0) {
        numpy.attr("matmul")(left, right, pybind11::arg("out") = out);
        return;
      }
      const pybind11::array_t<T> product = numpy.attr("matmul")(left, right);
      const auto p = product.template unchecked<2>();
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          T& target = c[i * ldc + j];
          // As in BLAS, beta = 0 does not read what may be uninitialised.
          target = static_cast<T>(alpha * p(i, j) + (beta == 0.0 ? 0.0 : beta * target));
        }
    } catch (...) {
      host->keep_error();
    }
  }

  // A view of the kernels' memory; the base object keeps NumPy from copying it.
  template <class T>
  static pybind11::array_t<T> view(const T* data, int64_t rows, int64_t cols, int64_t row_stride,
                                   int64_t col_stride) {
    const auto item = static_cast<pybind11::ssize_t>(sizeof(T));
    return pybind11::array_t<T>({rows, cols}, {row_stride * item, col_stride * item},
                                const_cast<T*>(data), pybind11::none());
  }

  const int64_t threads_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace cfal::numpy_door
