// Many prototypes: where the data lie, and therefore how far a matrix product can be trusted. The
// expansion q = |f|^2 + |w|^2 - 2 f w loses the digits by which |f|^2 + |w|^2 exceeds q, so its
// error in q / sigma is about eps (|f|^2 + |w|^2) / sigma. Small norms: products of the data as
// they are. Otherwise: in double, about the prototypes' mean.
#pragma once

#include "distance.h"
#include "pack.h"
#include "parallel.h"

namespace cfal {
namespace CFAL_ISA {

// Largest (|f|^2 + |w|^2) / sigma for which a float32 product keeps an affinity to about 1e-6.
constexpr double kTrustedNorm = 8.0;
// Prototypes closer together than this fraction of their (squared) norm are taken about their mean.
// Below 1 / 32 features at the mean would be near (many_rows.h) to prototypes on average.
constexpr double kTrustedSpread = 1.0 / 24;

// Whole blocks in sums that do not wait for each other.
template <class T>
inline double squared_norm(const T* x, int64_t n) {
  constexpr int kParts = 4;
  double sum = 0.0;
  int64_t d = 0;
  for (; d + kDistanceBlock <= n; d += kDistanceBlock) {
    Vec<T> parts[kParts] = {};
    for (int64_t i = 0; i < kDistanceBlock; i += kParts * kLanes<T>)
      for (int part = 0; part < kParts; ++part) {
        const Vec<T> v = load(x + d + i + part * kLanes<T>);
        parts[part] += v * v;
      }
    sum += sum_lanes<T>((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
  Vec<T> lanes{};
  for (; d + kLanes<T> <= n; d += kLanes<T>) lanes += load(x + d) * load(x + d);
  if (d < n) lanes += load_first(x + d, n - d) * load_first(x + d, n - d);
  return sum + sum_lanes<T>(lanes);
}

// |x - mean|^2 in double. Sums that do not wait for each other, added up after every block of
// features, so that the error does not grow with D.
template <class T>
inline double squared_distance_of(const T* x, const double* mean, int64_t n) {
  constexpr int kParts = 16;
  double sum = 0.0;
  for (int64_t block = 0; block < n; block += kDistanceBlock) {
    const int64_t last = block + kDistanceBlock < n ? block + kDistanceBlock : n;
    double parts[kParts] = {};
    int64_t d = block;
    for (; d + kParts <= last; d += kParts)
      for (int i = 0; i < kParts; ++i) {
        const double difference = x[d + i] - mean[d + i];
        parts[i] += difference * difference;
      }
    for (int i = 0; d < last; ++d, ++i) {
      const double difference = x[d] - mean[d];
      parts[i] += difference * difference;
    }
    for (int half = kParts / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    sum += parts[0];
  }
  return sum;
}

template <class T>
inline bool all_finite(const T* x, int64_t n) {
  for (int64_t d = 0; d < n; ++d)
    if (!(x[d] - x[d] == T{0})) return false;
  return true;
}

// out [D] = sum over rows k < K of what add(begin, end, sum) adds to sum [D] for each range of
// them: ranges of a fixed number of rows in parallel, added up in order.
template <class Add>
inline void sum_of_rows(const Runtime& runtime, int64_t K, int64_t D, const Add& add, double* out) {
  constexpr int64_t kPart = 128;
  const int64_t parts = (K + kPart - 1) / kPart;
  Scratch<double> sums(parts * D);
  // A sum in double costs as much as some multiply-adds.
  parallel(runtime, parts, 4 * kPart * D, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      double* const sum = sums.get() + part * D;
      for (int64_t d = 0; d < D; ++d) sum[d] = 0.0;
      add(part * kPart, (part + 1) * kPart < K ? (part + 1) * kPart : K, sum);
    }
  });
  for (int64_t d = 0; d < D; ++d) out[d] = 0.0;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t d = 0; d < D; ++d) out[d] += sums[part * D + d];
}

template <class T>
class ManyGeometry {
 public:
  // with_features: whether distances of the features will be asked for.
  ManyGeometry(const Problem& p, const Runtime& runtime, bool with_features)
      : prototypes(p),
        sigma(p.sigma),
        norm(p.K()),
        centred_norm(p.K()),
        mean(p.D),
        rounded_mean(p.D),
        rounded_norm(p.K()),
        feature_norm(with_features ? p.B : 0) {
    const int64_t K = p.K(), D = p.D;
    average(runtime, K, D);
    parallel(runtime, K + (with_features ? p.B : 0), 2 * D, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end && k < K; ++k) {
        norm[k] = squared_norm(prototypes.row(k), D);
        rounded_norm[k] = static_cast<T>(norm[k]);
        centred_norm[k] = squared_distance_of(prototypes.row(k), mean.get(), D);
      }
      FeatureRows<T> features(p, 1, D);
      for (int64_t i = begin < K ? 0 : begin - K; i < end - K; ++i)
        feature_norm[i] =
            p.target_at(i) == p.ignore_index ? 0.0 : squared_norm(features.rows(i, 1, 0, D), D);
    });
    for (int64_t k = 0; k < K; ++k) {
      if (!(norm[k] < __builtin_inf())) finite_prototypes &= all_finite(prototypes.row(k), D);
      largest_norm = norm[k] > largest_norm ? norm[k] : largest_norm;
      largest_centred_norm =
          centred_norm[k] > largest_centred_norm ? centred_norm[k] : largest_centred_norm;
      norm_sum += norm[k];
      centred_norm_sum += centred_norm[k];
    }
  }

  // Decides `centred`; the backward takes the forward's decision instead.
  void decide(int64_t B) {
    double largest_feature = 0.0;
    for (int64_t i = 0; i < B; ++i)
      largest_feature = feature_norm[i] > largest_feature ? feature_norm[i] : largest_feature;
    centred = !(largest_norm + largest_feature <= kTrustedNorm * sigma) ||
              !(centred_norm_sum >= kTrustedSpread * norm_sum);
  }

  // rows [rows, D] minus the mean, as U. The mean is rounded to U first unless digits are at stake:
  // a common shift of all prototypes changes no difference between them.
  template <class U>
  void centre(const T* rows, int64_t ld, int64_t count, U* out) const {
    const int64_t D = columns();
    if (sizeof(U) == sizeof(T) && !centred) {
      for (int64_t r = 0; r < count; ++r)
        for (int64_t d = 0; d < D; ++d)
          out[r * D + d] = static_cast<U>(rows[r * ld + d] - rounded_mean[d]);
      return;
    }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t d = 0; d < D; ++d) out[r * D + d] = static_cast<U>(rows[r * ld + d] - mean[d]);
  }
  int64_t columns() const { return prototypes.columns(); }

  // Bound of the error in q / sigma of a product in arithmetic of relative error `epsilon`.
  double product_error(double epsilon, double f_norm) const {
    return epsilon * (f_norm + largest_product_norm()) / sigma;
  }
  // Of the prototypes as products see them.
  double largest_product_norm() const { return centred ? largest_centred_norm : largest_norm; }

  const PrototypeRows<T> prototypes;
  const double sigma;
  Scratch<double> norm;          // [K] |w_k|^2
  Scratch<double> centred_norm;  // [K] |w_k - mean|^2
  Scratch<double> mean;          // [D]
  Scratch<T> rounded_mean;
  Scratch<T> rounded_norm;
  Scratch<double> feature_norm;  // [B] |f_i|^2, 0 for ignored rows
  double largest_norm = 0.0, largest_centred_norm = 0.0, norm_sum = 0.0, centred_norm_sum = 0.0;
  bool centred = false;  // take everything about the mean
  bool finite_prototypes = true;

 private:
  void average(const Runtime& runtime, int64_t K, int64_t D) {
    const auto add = [&](int64_t k, int64_t end, double* sum) {
      for (; k + 4 <= end; k += 4) {  // four at a time: sum is read and written less often
        const T *const a = prototypes.row(k), *const b = a + D, *const c = b + D, *const e = c + D;
        for (int64_t d = 0; d < D; ++d)
          sum[d] += (static_cast<double>(a[d]) + b[d]) + (static_cast<double>(c[d]) + e[d]);
      }
      for (; k < end; ++k)
        for (int64_t d = 0; d < D; ++d) sum[d] += prototypes.row(k)[d];
    };
    sum_of_rows(runtime, K, D, add, mean.get());
    for (int64_t d = 0; d < D; ++d) {
      mean[d] /= static_cast<double>(K);
      rounded_mean[d] = static_cast<T>(mean[d]);
    }
  }
};

}  // namespace CFAL_ISA
}  // namespace cfal
