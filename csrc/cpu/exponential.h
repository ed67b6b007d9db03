// exp(x) and exp(x) - 1 of vectors, for x <= 0 and NaN.
#pragma once

#include "simd.h"

namespace cfal {
namespace CFAL_ISA {

// Constants of exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2, with ln 2 split in two
// so that n * high is exact.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -104.0f;  // exp is 0 below
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 8;
};
template <>
struct ExpConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                          kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -746.0;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 14;
};

// x = n ln 2 + r, for x <= 0 (and NaN, which stays in r).
template <class T>
struct Reduced {
  Vec<T> r;
  Vec<T> first, second;  // 2^n in two factors: n reaches below the smallest normal exponent
};

template <class T>
inline Reduced<T> reduce_nonpositive(Vec<T> x) {
  using K = ExpConstants<T>;
  using I = IntVec<T>;
  const Vec<T> lowest = Vec<T>{} + K::kLowest;
  x = x < lowest ? lowest : x;  // NaN compares false and stays
  const Vec<T> shifted = x * K::kLog2e + K::kRound;
  const Vec<T> n = shifted - K::kRound;
  const I exponent = bits_as<I>(shifted) - bits_as<I>(Vec<T>{} + K::kRound);
  // In halves of 32 bits, since AVX2 has no such shift of 64: the upper one is all sign.
  const I half = bits_as<I>(bits_as<IntVec<float>>(exponent) >> 1);
  return {(x - n * K::kLn2High) - n * K::kLn2Low,
          bits_as<Vec<T>>((half + K::kBias) << K::kMantissa),
          bits_as<Vec<T>>((exponent - half + K::kBias) << K::kMantissa)};
}

// sum_{i >= kFirst} r^(i - kFirst) / i!
template <class T, int kFirst>
inline Vec<T> exp_series(Vec<T> r) {
  constexpr T kInverseFactorial[14] = {1.0,
                                       1.0,
                                       1.0 / 2,
                                       1.0 / 6,
                                       1.0 / 24,
                                       1.0 / 120,
                                       1.0 / 720,
                                       1.0 / 5040,
                                       1.0 / 40320,
                                       1.0 / 362880,
                                       1.0 / 3628800,
                                       1.0 / 39916800,
                                       1.0 / 479001600,
                                       1.0 / 6227020800.0};
  Vec<T> poly = Vec<T>{} + kInverseFactorial[ExpConstants<T>::kTerms - 1];
#pragma GCC unroll 16
  for (int i = ExpConstants<T>::kTerms - 2; i >= kFirst; --i)
    poly = poly * r + kInverseFactorial[i];
  return poly;
}

// exp(x), within 2 units in the last place, gradual underflow included.
template <class T>
inline Vec<T> exp_nonpositive(Vec<T> x) {
  const Reduced<T> z = reduce_nonpositive<T>(x);
  return exp_series<T, 0>(z.r) * z.first * z.second;
}

// exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), within a few units in the last place: where n = 0,
// nothing is subtracted.
template <class T>
inline Vec<T> expm1_nonpositive(Vec<T> x) {
  const Reduced<T> z = reduce_nonpositive<T>(x);
  const Vec<T> power = z.first * z.second;
  return power * (exp_series<T, 1>(z.r) * z.r) + (power - T{1});
}

}  // namespace CFAL_ISA
}  // namespace cfal
