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
  auto f = [&](int64_t i, int64_t d) { return features.at(i, d); };
  auto w = [&](int64_t k, int64_t d) { return prototypes.at(k / p.M, k % p.M, d); };

  // R = mean over pairs of (D_jk - mu)^2
  const double pairs = K * (K - 1) / 2.0;
  std::vector<double> distance(K * K, 0.0);
  double mu = 0.0, R = 0.0;
  if (p.has_diversity()) {
    for (int64_t j = 0; j < K; ++j)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t d = 0; d < D; ++d)
          distance[j * K + k] += (w(j, d) - w(k, d)) * (w(j, d) - w(k, d));
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
        double sum = 0;
        for (int64_t d = 0; d < D; ++d) sum += std::pow(f(i, d) - w(j * p.M + m, d), 2);
        if (sum < q[j]) q[j] = sum, nearest[j] = j * p.M + m;
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
        const double pull = c * (f(i, d) - w(nearest[j], d));
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
              grad_R * 4 / pairs * (j == k ? 0 : distance[j * K + k] - mu) * (w(j, d) - w(k, d));
  return truth;
}

}  // namespace cfal::test
