// Few prototypes, loss and gradients in one pass for an upstream gradient that is known beforehand:
// the gradients of a block of rows are made while its features are in cache. Bit for bit what
// few_forward and few_backward give, since a chunk's sums are made in the same order.
#pragma once

#include "few_backward.h"
#include "few_forward.h"

namespace cfal {
namespace CFAL_ISA {

constexpr int64_t kBlockBytes = 64 * 1024;
static_assert(kBlockRows <= kRowsAtOnce);

// Chunks are what threads share in one pass. A small call is not worth a second thread.
template <class T>
bool takes_one_pass(const Problem& p, const Runtime& runtime) {
  const double work = static_cast<double>(p.B) * static_cast<double>(p.K() * p.D);
  return fits_one_pass<T>(p) && (FewGradients<T>::chunks_of(p) >= runtime.threads() ||
                                 work < static_cast<double>(kWorkPerThread));
}

template <class T>
void few_value_and_grad(const Problem& p, int64_t counted_rows, const UpstreamView& upstream,
                        const Runtime& runtime, T* loss, T* saved, void* grad_features,
                        void* grad_prototypes) {
  const PrototypePanels<T> prototypes(p);
  if (!takes_one_pass<T>(p, runtime)) {
    few_forward(p, counted_rows, prototypes, runtime, loss, saved);
    few_backward<T>(p, upstream, saved, prototypes, runtime, grad_features, grad_prototypes);
    return;
  }
  FewRows<T> rows(p, counted_rows, prototypes, loss, saved);
  FewGradients<T> gradients(p, upstream, saved, prototypes, grad_features, grad_prototypes);
  int64_t block = kBlockRows;
  while (block > 2 * kPullRows && block * p.D * static_cast<int64_t>(sizeof(T)) > kBlockBytes)
    block /= 2;
  rows.begin(runtime);
  parallel(runtime, gradients.chunks(), gradients.chunk_rows() * p.K() * (p.D + 32) * 3,
           [&](int64_t begin, int64_t end) {
             FeatureRows<T> features(p, block, p.D);
             typename FewRows<T>::Worker row_worker(p);
             typename FewGradients<T>::Worker worker(gradients, p.D);
             for (int64_t chunk = begin; chunk < end; ++chunk) {
               const int64_t last = gradients.first_row(chunk + 1);
               gradients.begin_chunk(chunk, 0, worker);
               for (int64_t first = gradients.first_row(chunk); first < last; first += block) {
                 const int64_t count = last - first < block ? last - first : block;
                 const T* const f = features.rows(first, count, 0, p.D);
                 rows.run(first, count, f, features.ld(), row_worker);
                 gradients.begin_block(first, count, worker);
                 gradients.template pull_columns<false>(first, count, f, features.ld(), 0, p.D,
                                                        worker);
                 gradients.end_block(first, count, worker);
               }
               gradients.end_chunk(worker);
             }
           });
  rows.finish();
  gradients.finish(runtime);
}

}  // namespace CFAL_ISA
}  // namespace cfal
