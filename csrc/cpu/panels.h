// Prototypes, and sums as many, as panels of columns: [panels, K, kPanel], the last one filled up
// with zeros. A pass over rows of features then reads and writes them as one stream each, whatever
// K and D: rows of a matrix would share sets of the L1 cache, or agree in the low 12 bits of their
// addresses, by which a processor first tells whether a load has to wait for a store.
#pragma once

#include <cstdint>

#include "pack.h"
#include "simd.h"

namespace cfal {
namespace CFAL_ISA {

// Two registers share what is broadcast for a row; 32 registers of AVX-512 hold more rows instead.
constexpr int kPanelVectors = kVectorBytes == 64 ? 1 : 2;
template <class T>
constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

template <class T>
inline int64_t panels_of(int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T>;
}

// Prototypes as distances read them: a matrix whose rows are `stride` elements apart, or panels
// that are. The offsets within a panel are then known to the compiler.
template <class T, bool kPanels>
struct PrototypeView {
  const T* data;
  int64_t stride;

  // From a prototype to the next within a panel; from a panel to the next.
  int64_t row() const { return kPanels ? kPanel<T> : stride; }
  int64_t panel() const { return kPanels ? stride : kPanel<T>; }

  const T& at(int64_t k, int64_t d) const {
    return data[d / kPanel<T> * panel() + k * row() + d % kPanel<T>];
  }
  PrototypeView from(int64_t k) const { return {data + k * row(), stride}; }
  // From a column on that begins a panel.
  PrototypeView from_column(int64_t d) const { return {data + d / kPanel<T> * panel(), stride}; }
};

template <class T>
using MatrixRows = PrototypeView<T, false>;
template <class T>
using PanelRows = PrototypeView<T, true>;

// All prototypes, copied.
template <class T>
class PrototypePanels {
 public:
  explicit PrototypePanels(const Problem& p)
      : K_(p.K()), copy_(panels_of<T>(p.D) * kPanel<T> * p.K()) {
    const PrototypeRows<T> w(p);
    for (int64_t column = 0; column < p.D; column += kPanel<T>) {
      T* const panel = copy_.get() + column * K_;
      const int64_t n = p.D - column < kPanel<T> ? p.D - column : kPanel<T>;
      if (n == kPanel<T>) {  // of a size that the compiler knows
        for (int64_t k = 0; k < K_; ++k)
          __builtin_memcpy(panel + k * kPanel<T>, w.row(k) + column, kPanel<T> * sizeof(T));
      } else {
        for (int64_t k = 0; k < K_; ++k)
          for (int64_t d = 0; d < kPanel<T>; ++d)
            panel[k * kPanel<T> + d] = d < n ? w.row(k)[column + d] : T{0};
      }
    }
  }

  // The panel that begins with a column.
  const T* from_column(int64_t column) const { return copy_.get() + column * K_; }
  PanelRows<T> rows() const { return {copy_.get(), K_ * kPanel<T>}; }

 private:
  const int64_t K_;
  Scratch<T> copy_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
