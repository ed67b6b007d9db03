// Reading inputs of any dtype and stride as contiguous rows of the compute type, and writing
// results back in the inputs' dtypes.
#pragma once

#include <cstdint>

#include "../core/problem.h"
#include "scratch.h"

namespace cfal {
namespace CFAL_ISA {

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
}

inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float bfloat16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

inline float half_to_float(uint16_t h) {
  // Move exponent and mantissa into float's place, then let a product rebias the exponent
  // (subnormals included).
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  uint32_t bits = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000u) bits |= 0x7f800000u;  // inf and NaN
  return bits_to_float(bits | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

// Both roundings are to nearest, ties to even, as torch's.
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to inf
  if (magnitude < 0x38800000u) {                                               // subnormal in half
    // Adding 0.5 puts the half's last bit at float's last bit: the sum rounds as wanted.
    const uint32_t sum = float_to_bits(bits_to_float(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

// out[i] = convert(in[i * stride]); a loop of its own for unit stride, which vectorises.
template <class From, class To, class Convert>
inline void read_as(const void* data, int64_t offset, int64_t stride, int64_t n, To* out,
                    const Convert& convert) {
  const From* in = static_cast<const From*>(data) + offset;
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) out[i] = convert(in[i]);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = convert(in[i * stride]);
}

template <class T>
inline void read_strided(const void* data, DType dtype, int64_t offset, int64_t stride, int64_t n,
                         T* out) {
  switch (dtype) {
    case DType::kFloat64:
      return read_as<double>(data, offset, stride, n, out, [](double x) { return T(x); });
    case DType::kFloat32:
      return read_as<float>(data, offset, stride, n, out, [](float x) { return T(x); });
    case DType::kBFloat16:
      return read_as<uint16_t>(data, offset, stride, n, out,
                               [](uint16_t x) { return T(bfloat16_to_float(x)); });
    case DType::kFloat16:
      return read_as<uint16_t>(data, offset, stride, n, out,
                               [](uint16_t x) { return T(half_to_float(x)); });
  }
}

// out[offset .. offset + n) of a contiguous tensor of the given dtype.
template <class T>
inline void write_row(void* data, DType dtype, int64_t offset, int64_t n, const T* in) {
  switch (dtype) {
    case DType::kFloat64: {
      double* p = static_cast<double*>(data) + offset;
      for (int64_t i = 0; i < n; ++i) p[i] = in[i];
      return;
    }
    case DType::kFloat32: {
      float* p = static_cast<float*>(data) + offset;
      for (int64_t i = 0; i < n; ++i) p[i] = static_cast<float>(in[i]);
      return;
    }
    case DType::kBFloat16: {
      uint16_t* p = static_cast<uint16_t*>(data) + offset;
      for (int64_t i = 0; i < n; ++i) p[i] = float_to_bfloat16(static_cast<float>(in[i]));
      return;
    }
    case DType::kFloat16: {
      uint16_t* p = static_cast<uint16_t*>(data) + offset;
      for (int64_t i = 0; i < n; ++i) p[i] = float_to_half(static_cast<float>(in[i]));
      return;
    }
  }
}

// Rows of the features as T with unit stride: in place where they already are, else copied.
template <class T>
class FeatureRows {
 public:
  FeatureRows(const Problem& p, int64_t max_rows, int64_t max_cols)
      : view_(p.features),
        direct_(view_.dtype == dtype_of<T>() && (view_.col_stride == 1 || view_.cols == 1)) {
    if (!direct_) {
      ld_ = max_cols;
      copy_.resize(max_rows * max_cols);
    } else {
      ld_ = view_.row_stride;
    }
  }

  // Points at [rows, cols] from (row, col) on; valid until the next call.
  const T* rows(int64_t row, int64_t rows, int64_t col, int64_t cols) {
    if (direct_) return static_cast<const T*>(view_.data) + row * view_.row_stride + col;
    for (int64_t r = 0; r < rows; ++r)
      read_strided(view_.data, view_.dtype, (row + r) * view_.row_stride + col * view_.col_stride,
                   view_.col_stride, cols, copy_.get() + r * ld_);
    return copy_.get();
  }
  int64_t ld() const { return ld_; }

 private:
  MatrixView view_;
  bool direct_;
  int64_t ld_ = 0;
  Scratch<T> copy_;
};

// Prototype k, its n columns from `column` on.
template <class T>
inline void read_prototype(const Problem& p, int64_t k, int64_t column, int64_t n, T* out) {
  read_strided(p.prototypes, p.prototypes_dtype,
               k / p.M * p.prototype_strides[0] + k % p.M * p.prototype_strides[1] +
                   column * p.prototype_strides[2],
               p.prototype_strides[2], n, out);
}

// All prototypes as a contiguous [K, D] matrix of T: in place where they already are, else copied.
template <class T>
class PrototypeRows {
 public:
  explicit PrototypeRows(const Problem& p) : d_(p.D) {
    const bool contiguous = (p.prototype_strides[2] == 1 || p.D == 1) &&
                            (p.prototype_strides[1] == p.D || p.M == 1) &&
                            (p.prototype_strides[0] == p.M * p.D || p.C == 1);
    if (contiguous && p.prototypes_dtype == dtype_of<T>()) {
      data_ = static_cast<const T*>(p.prototypes);
      return;
    }
    copy_.resize(p.K() * p.D);
    for (int64_t k = 0; k < p.K(); ++k) read_prototype(p, k, 0, p.D, copy_.get() + k * p.D);
    data_ = copy_.get();
  }

  const T* get() const { return data_; }
  const T* row(int64_t k) const { return data_ + k * d_; }
  int64_t columns() const { return d_; }

 private:
  int64_t d_;
  const T* data_ = nullptr;
  Scratch<T> copy_;
};

}  // namespace CFAL_ISA
}  // namespace cfal
