// parallel_for over the runtime's callback, with the grain from an estimate of the work.
#pragma once

#include "runtime.h"

#ifndef CFAL_ISA
#define CFAL_ISA baseline
#endif

namespace cfal {
namespace CFAL_ISA {

// Multiply-adds below which a second thread costs more than it brings (about 10 us of one core).
constexpr int64_t kWorkPerThread = 400'000;

// Ranges that the tasks are cut into at most, for threads to take as they come: one that the
// machine slows down then holds up no other. What a task computes does not depend on who takes it.
constexpr int64_t kRanges = 64;

// body(begin, end) on ranges that cover [0, tasks); work_per_task in multiply-adds.
template <class Body>
void parallel(const Runtime& runtime, int64_t tasks, int64_t work_per_task, const Body& body) {
  if (tasks <= 0) return;
  const int64_t grain = work_per_task >= kWorkPerThread
                            ? 1
                            : kWorkPerThread / (work_per_task > 0 ? work_per_task : 1) + 1;
  if (tasks <= grain) {
    body(int64_t{0}, tasks);
    return;
  }
  // Ranges of equal size: two of very different ones would be shared badly.
  int64_t ranges = tasks / grain < 2 ? 2 : tasks / grain;
  if (ranges > kRanges) ranges = kRanges;
  struct Context {
    const Body* body;
    int64_t tasks, range, next;
  } context{&body, tasks, (tasks + ranges - 1) / ranges, 0};
  runtime.parallel_for(
      tasks, grain,
      [](int64_t, int64_t, void* pointer) {
        Context& c = *static_cast<Context*>(pointer);
        for (;;) {
          const int64_t begin = __atomic_fetch_add(&c.next, c.range, __ATOMIC_RELAXED);
          if (begin >= c.tasks) return;
          (*c.body)(begin, begin + c.range < c.tasks ? begin + c.range : c.tasks);
        }
      },
      &context);
}

// Tasks 0, 1, .. that threads take as they come: the largest should stand first.
class TaskQueue {
 public:
  explicit TaskQueue(int64_t tasks) : tasks_(tasks) {}
  // The next task, or false where none is left.
  bool take(int64_t& task) {
    task = __atomic_fetch_add(&next_, int64_t{1}, __ATOMIC_RELAXED);
    return task < tasks_;
  }

 private:
  const int64_t tasks_;
  int64_t next_ = 0;
};

// body(queue) on as many threads as the runtime gives, for tasks that multiply matrices: always
// inside the runtime's parallel region, where a product runs on the calling thread alone, also when
// there is one task (a second, empty one opens the region).
template <class Body>
void parallel_products(const Runtime& runtime, int64_t tasks, const Body& body) {
  if (tasks <= 0) return;
  struct Context {
    const Body* body;
    TaskQueue queue;
  } context{&body, TaskQueue(tasks)};
  runtime.parallel_for(
      tasks < 2 ? 2 : tasks, 1,
      [](int64_t, int64_t, void* pointer) {
        Context& c = *static_cast<Context*>(pointer);
        (*c.body)(c.queue);
      },
      &context);
}

// The runtime's product for the type at hand.
template <class T>
inline void gemm(const Runtime& runtime, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                 double alpha, const T* a, int64_t lda, const T* b, int64_t ldb, double beta, T* c,
                 int64_t ldc) {
  if constexpr (sizeof(T) == 8)
    runtime.gemm_f64(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else
    runtime.gemm_f32(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace CFAL_ISA
}  // namespace cfal
