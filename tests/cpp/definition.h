// The loss and its gradients in double, straight from the formulas (docs/maths.md), for
// comparison.
#pragma once

#include <cmath>
#include <vector>

#include "core/problem.h"
#include "tests/cpp/arrays.h"

namespace cfal::test {

struct Truth {
  std::vector<double> loss;             // [B] or one value
  std::vector<double> grad_features;    // [B, D]
  std::vector<double> grad_prototypes;  // [K, D]
};

inline Truth definition(const Problem& p, const Array& features, const Array& prototypes,
                        const UpstreamView& upstream) {
  const int64_t K = p.K(), D = p.D;
  std::vector<double> f_values, w_values;
  for (int64_t i = 0; i < p.B; ++i)
    for (int64_t d = 0; d < D; ++d) f_values.push_back(features.at(i, d));
  for (int64_t k = 0; k < K; ++k)
    for (int64_t d = 0; d < D; ++d) w_values.push_back(prototypes.at(k / p.M, k % p.M, d));
  const double *const f = f_values.data(), *const w = w_values.data();
  auto squared_distance = [D](const double* x, const double* y) {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += (x[d] - y[d]) * (x[d] - y[d]);
    return sum;
  };

  // R = mean over pairs of (D_jk - mu)^2
  const double pairs = K * (K - 1) / 2.0;
  std::vector<double> distance(K * K, 0.0);
  double mu = 0.0, R = 0.0;
  if (p.has_diversity()) {
    for (int64_t j = 0; j < K; ++j)
      for (int64_t k = 0; k < K; ++k) distance[j * K + k] = squared_distance(w + j * D, w + k * D);
    for (int64_t j = 0; j < K; ++j)
      for (int64_t k = 0; k < j; ++k) mu += distance[j * K + k] / pairs;
    for (int64_t j = 0; j < K; ++j)
      for (int64_t k = 0; k < j; ++k) R += std::pow(distance[j * K + k] - mu, 2) / pairs;
  }

  Truth truth;
  truth.loss.assign(p.reduction == Reduction::kNone ? p.B : 1, 0.0);
  truth.grad_features.assign(p.B * D, 0.0);
  truth.grad_prototypes.assign(K * D, 0.0);
  double counted = 0, grad_R = 0;
  for (int64_t i = 0; i < p.B; ++i) counted += p.target_at(i) != p.ignore_index;
  for (int64_t i = 0; i < p.B; ++i) {
    const int64_t y = p.target_at(i);
    if (y == p.ignore_index) continue;
    std::vector<double> q(p.C), a(p.C);
    std::vector<int64_t> nearest(p.C);
    for (int64_t j = 0; j < p.C; ++j) {
      q[j] = INFINITY;
      for (int64_t m = 0; m < p.M; ++m) {
        const int64_t k = j * p.M + m;
        const double sum = squared_distance(f + i * D, w + k * D);
        if (sum < q[j]) q[j] = sum, nearest[j] = k;
      }
      a[j] = std::exp(-q[j] / p.sigma);
    }
    const double s = a[y], t = -std::expm1(-q[y] / p.sigma);
    const double focal = p.class_weight_at(y) * (p.gamma == 0 ? 1.0 : std::pow(t, p.gamma));
    double hinges = 0, active = 0;
    for (int64_t j = 0; j < p.C; ++j)
      if (j != y && p.margin + a[j] - s > 0) hinges += p.margin + a[j] - s, ++active;
    const double sum = hinges + p.diversity_weight * R;
    const double share = p.reduction == Reduction::kMean ? 1.0 / counted : 1.0;
    truth.loss[p.reduction == Reduction::kNone ? i : 0] += share * focal * sum;

    const double g = share * upstream.at(i);
    double slope = -focal * active;
    if (!p.detach_focal && p.gamma > 0 && t > 0)
      slope -= p.class_weight_at(y) * p.gamma * std::pow(t, p.gamma - 1) * sum;
    grad_R += g * p.diversity_weight * focal;
    for (int64_t j = 0; j < p.C; ++j) {
      const double da = j == y ? slope : (p.margin + a[j] - s > 0 ? focal : 0.0);
      const double c = 2 / p.sigma * a[j] * da * g;
      for (int64_t d = 0; d < D; ++d) {
        const double pull = c * (f[i * D + d] - w[nearest[j] * D + d]);
        truth.grad_features[i * D + d] -= pull;
        truth.grad_prototypes[nearest[j] * D + d] += pull;
      }
    }
  }
  if (p.reduction == Reduction::kMean && counted == 0) truth.loss[0] = NAN;
  if (p.has_diversity())
    for (int64_t j = 0; j < K; ++j)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t d = 0; d < D; ++d)
          truth.grad_prototypes[j * D + d] +=
              grad_R * 4 / pairs * (distance[j * K + k] - mu) * (w[j * D + d] - w[k * D + d]);
  return truth;
}

}  // namespace cfal::test
