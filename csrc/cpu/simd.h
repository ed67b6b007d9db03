// Vectors of one register of the instruction set this file is compiled for, through the compilers'
// vector extensions: plain operators, any architecture. Intrinsics stand only where compilers do
// not find the instruction. a * b + c contracts to one fused multiply-add where the target has it.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef CFAL_ISA
#define CFAL_ISA baseline
#endif

namespace cfal {
namespace CFAL_ISA {

#if defined(CFAL_VECTOR_BYTES)  // tests: another instruction set's tiles on any processor
constexpr int kVectorBytes = CFAL_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
using IntVec = typename VectorOf<T>::integer;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes; the others are 0, so that a tail runs through the same arithmetic as a full
// register.
template <class T>
inline Vec<T> load_first(const T* p, int64_t n) {
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
inline void store_first(T* p, Vec<T> v, int64_t n) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define CFAL_FOUR_DOUBLES 1
#endif
#elif defined(__AVX2__) && !defined(__AVX512F__) && !defined(CFAL_VECTOR_BYTES)
#define CFAL_FOUR_DOUBLES 1
#endif

#if defined(CFAL_FOUR_DOUBLES)
// Four doubles whose sums are the lanes' sums: lane i plus lane i + n / 2, until four are left.
inline __m256d four_doubles(Vec<float> v) {
#if defined(__AVX512F__)
  typedef double Double8 __attribute__((vector_size(64)));
  const Double8 d =
      __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), Double8) +
      __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), Double8);
  return __builtin_shufflevector(d, d, 0, 1, 2, 3) + __builtin_shufflevector(d, d, 4, 5, 6, 7);
#else
  // GCC makes two conversions and an insertion of a __builtin_convertvector here.
  const __m256 all = (__m256)v;
  return _mm256_cvtps_pd(_mm256_castps256_ps128(all)) +
         _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1));
#endif
}
inline __m256d four_doubles(Vec<double> v) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return (__m256d)v;
#endif
}
#endif

// Sum of the lanes in double, halving in a fixed order (lane i with lane i + n / 2).
template <class T>
inline double sum_lanes(Vec<T> v) {
#if defined(CFAL_FOUR_DOUBLES)
  const __m256d d = four_doubles(v);
  return (d[0] + d[2]) + (d[1] + d[3]);
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  double d[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) d[i] = lanes[i];
  for (int n = kLanes<T> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) d[i] += d[i + n];
  return d[0];
#endif
}

// sum_lanes of four vectors, bit for bit: a transposition shares its steps.
template <class T>
inline void sum_lanes_of_four(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, double* sums) {
#if defined(CFAL_FOUR_DOUBLES)
  const __m256d da = four_doubles(a), db = four_doubles(b), dc = four_doubles(c),
                dd = four_doubles(d);
  // a0 + a2, a1 + a3, c0 + c2, c1 + c3, and the same of b and d
  const __m256d ac = _mm256_permute2f128_pd(da, dc, 0x20) + _mm256_permute2f128_pd(da, dc, 0x31);
  const __m256d bd = _mm256_permute2f128_pd(db, dd, 0x20) + _mm256_permute2f128_pd(db, dd, 0x31);
  _mm256_storeu_pd(sums, _mm256_hadd_pd(ac, bd));
#else
  sums[0] = sum_lanes<T>(a);
  sums[1] = sum_lanes<T>(b);
  sums[2] = sum_lanes<T>(c);
  sums[3] = sum_lanes<T>(d);
#endif
}

template <class V>
inline V bits_as(const auto& from) {
  static_assert(sizeof(V) == sizeof(from));
  V to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace CFAL_ISA
}  // namespace cfal
