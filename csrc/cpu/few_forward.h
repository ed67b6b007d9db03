// Few prototypes, forward: one pass over the features writes the loss and the coefficients.
#pragma once

#include "few_rows.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
void few_forward(const Problem& p, int64_t counted_rows, const PrototypePanels<T>& prototypes,
                 const Runtime& runtime, T* loss, T* saved) {
  FewRows<T> rows(p, counted_rows, prototypes, loss, saved);
  rows.begin(runtime);
  const int64_t tasks = (p.B + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel(runtime, tasks, kRowsAtOnce * p.K() * (p.D + 32), [&](int64_t begin, int64_t end) {
    FeatureRows<T> features(p, kRowsAtOnce, p.D);
    typename FewRows<T>::Worker worker(p);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kRowsAtOnce,
                    count = p.B - first < kRowsAtOnce ? p.B - first : kRowsAtOnce;
      rows.run(first, count, features.rows(first, count, 0, p.D), features.ld(), worker);
    }
  });
  rows.finish();
}

}  // namespace CFAL_ISA
}  // namespace cfal
