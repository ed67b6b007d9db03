// Aligned scratch memory. Not std::vector: its code would be compiled once per instruction set and
// merged by the linker, and a machine without AVX-512 could then run the AVX-512 copy.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifndef CFAL_ISA
#define CFAL_ISA baseline
#endif

namespace cfal {
namespace CFAL_ISA {

template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t n) { resize(n); }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Contents are lost; memory is uninitialised.
  void resize(int64_t n) {
    std::free(data_);
    data_ = nullptr;
    if (n < 0 || n > (INT64_MAX - 127) / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace CFAL_ISA
}  // namespace cfal
