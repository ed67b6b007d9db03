// Test arrays that own exactly the memory they span, so that the address sanitizer sees any element
// read beside them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "core/problem.h"

namespace cfal::test {

// A fixed sequence: the same inputs in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  int64_t below(int64_t n) { return bits() % n; }
  double uniform() { return bits() / 1073741824.0 - 1.0; }  // [-1, 1)

 private:
  uint64_t state_;
};

inline int64_t item_size(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}

inline double half_value(uint16_t bits) {
  const int sign = bits >> 15, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                 : exponent == 0 ? std::ldexp(mantissa, -24)
                                 : std::ldexp(1024 + mantissa, exponent - 25);
  return sign ? -value : value;
}

inline double bfloat_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline double read(const void* data, DType type, int64_t index) {
  const char* const at = static_cast<const char*>(data) + index * item_size(type);
  uint16_t half;
  float single;
  double wide;
  switch (type) {
    case DType::kFloat16:
      std::memcpy(&half, at, 2);
      return half_value(half);
    case DType::kBFloat16:
      std::memcpy(&half, at, 2);
      return bfloat_value(half);
    case DType::kFloat32:
      std::memcpy(&single, at, 4);
      return single;
    default:
      std::memcpy(&wide, at, 8);
      return wide;
  }
}

// Half types are truncated: the tests read back what was stored.
inline void write(void* data, DType type, int64_t index, double value) {
  char* const at = static_cast<char*>(data) + index * item_size(type);
  const float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  uint16_t half;
  switch (type) {
    case DType::kFloat16: {
      const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
      const uint16_t sign = bits >> 16 & 0x8000;
      const uint16_t special = 0x7c00 | (std::isnan(value) ? 512 : 0);
      half = exponent >= 31  ? sign | special
             : exponent <= 0 ? sign
                             : sign | exponent << 10 | (bits >> 13 & 1023);
      std::memcpy(at, &half, 2);
      break;
    }
    case DType::kBFloat16:
      half = bits >> 16;
      std::memcpy(at, &half, 2);
      break;
    case DType::kFloat32:
      std::memcpy(at, &single, 4);
      break;
    default:
      std::memcpy(at, &value, 8);
  }
}

enum class Layout { kContiguous, kPaddedRows, kTransposed, kReversed, kExpandedRows, kCount };

class Array {
 public:
  Array(DType type, std::vector<int64_t> shape, Layout layout = Layout::kContiguous)
      : type_(type), shape_(std::move(shape)), strides_(shape_.size()) {
    const size_t n = shape_.size();
    int64_t step = 1;
    for (size_t i = 0; i < n; ++i) {
      // Transposed: the first axis is the fastest.
      const size_t axis = layout == Layout::kTransposed ? i : n - 1 - i;
      strides_[axis] = step;
      step *= std::max<int64_t>(shape_[axis], 1);
      if (layout == Layout::kPaddedRows) step += 3;
    }
    if (layout == Layout::kExpandedRows) strides_[0] = 0;
    if (layout == Layout::kReversed)
      for (int64_t& stride : strides_) stride = -2 * stride;
    int64_t low = 0, high = 0;
    for (size_t i = 0; i < n; ++i) {
      if (shape_[i] == 0) return;
      (strides_[i] < 0 ? low : high) += strides_[i] * (shape_[i] - 1);
    }
    memory_.reset(std::calloc(high - low + 1, item_size(type)));
    data_ = static_cast<char*>(memory_.get()) - low * item_size(type);
  }

  void* data() const { return data_; }
  DType type() const { return type_; }
  int64_t stride(int axis) const { return strides_[axis]; }
  int64_t size(int axis) const { return shape_[axis]; }

  double at(int64_t i, int64_t j = 0, int64_t k = 0) const {
    return read(data_, type_, offset(i, j, k));
  }
  void set(double value, int64_t i, int64_t j = 0, int64_t k = 0) {
    write(data_, type_, offset(i, j, k), value);
  }
  void fill(const std::function<double()>& next) {
    for (int64_t i = 0; i < size(0); ++i)
      for (int64_t j = 0; j < (shape_.size() > 1 ? size(1) : 1); ++j)
        for (int64_t k = 0; k < (shape_.size() > 2 ? size(2) : 1); ++k) set(next(), i, j, k);
  }

 private:
  int64_t offset(int64_t i, int64_t j, int64_t k) const {
    const int64_t index[3] = {i, j, k};
    int64_t sum = 0;
    for (size_t axis = 0; axis < shape_.size(); ++axis) sum += index[axis] * strides_[axis];
    return sum;
  }

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  DType type_;
  std::vector<int64_t> shape_, strides_;
  std::unique_ptr<void, Free> memory_;
  char* data_ = nullptr;
};

}  // namespace cfal::test
