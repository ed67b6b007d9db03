// Few prototypes, backward: a task owns columns of a chunk of rows. Tasks side by side
// are of different chunks, so that threads do not work on neighbouring columns of the same rows:
// what a processor fetches ahead of one task is the begin of the next.
#pragma once

#include "few_gradients.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
void few_backward(const Problem& p, const UpstreamView& upstream, const T* saved,
                  const PrototypePanels<T>& prototypes, const Runtime& runtime, void* grad_features,
                  void* grad_prototypes) {
  FewGradients<T> gradients(p, upstream, saved, prototypes, grad_features, grad_prototypes);
  const int64_t wide = gradients.task_columns(runtime.threads()), tasks = (p.D + wide - 1) / wide;
  parallel(runtime, tasks * gradients.chunks(), gradients.chunk_rows() * p.K() * wide * 2,
           [&](int64_t begin, int64_t end) {
             FeatureRows<T> features(p, kBlockRows, wide);
             typename FewGradients<T>::Worker worker(gradients, wide);
             for (int64_t task = begin; task < end; ++task) {
               const int64_t chunk = task % gradients.chunks(),
                             column = task / gradients.chunks() * wide;
               const int64_t columns = p.D - column < wide ? p.D - column : wide;
               const int64_t last = gradients.first_row(chunk + 1);
               gradients.begin_chunk(chunk, column, worker);
               for (int64_t first = gradients.first_row(chunk); first < last; first += kBlockRows) {
                 const int64_t rows = last - first < kBlockRows ? last - first : kBlockRows;
                 gradients.begin_block(first, rows, worker);
                 const T* const f = features.rows(first, rows, column, columns);
                 gradients.template pull_columns<true>(first, rows, f, features.ld(), column,
                                                       columns, worker);
                 gradients.end_block(first, rows, worker);
               }
               gradients.end_chunk(worker);
             }
           });
  gradients.finish(runtime);
}

}  // namespace CFAL_ISA
}  // namespace cfal
