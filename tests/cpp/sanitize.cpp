// Drives the CPU kernels of every instruction set of this machine under the sanitizers: odd shapes,
// dtypes, layouts, special values, threads. Results are compared with the definition, between
// thread counts and between two backwards, so that a wrong element counts like a wrong address.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cfal.h"
#include "cpu/isa.h"
#include "tests/cpp/arrays.h"
#include "tests/cpp/definition.h"

namespace cfal::test {
namespace {

int failures = 0;
int64_t calls = 0;

void expect(bool condition, const std::string& where, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED %s: %s\n", where.c_str(), what.c_str());
  ++failures;
}

std::vector<Kernels> variants() {
  std::vector<Kernels> all = {CFAL_KERNELS(baseline), CFAL_KERNELS(wide)};
#if defined(CFAL_X86_VARIANTS)
  if (__builtin_cpu_supports("x86-64-v3")) all.push_back(CFAL_KERNELS(avx2));
  if (__builtin_cpu_supports("x86-64-v4")) all.push_back(CFAL_KERNELS(avx512));
#endif
  return all;
}

// `threads` ranges of unequal length, each on its own thread.
template <int threads>
void parallel_for(int64_t tasks, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t parts = std::min<int64_t>(threads, std::max<int64_t>(tasks, 1));
  std::vector<std::thread> workers;
  for (int64_t part = 1; part < parts; ++part)
    workers.emplace_back(body, tasks * part / parts, tasks * (part + 1) / parts, context);
  body(0, tasks / parts, context);
  for (std::thread& worker : workers) worker.join();
}

template <int count>
int64_t threads() {
  return count;
}

template <class T>
void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, double beta, T* c, int64_t ldc) {
  std::vector<double> row(n);
  for (int64_t i = 0; i < m; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t l = 0; l < k; ++l) {
      const double left = ta ? a[l * lda + i] : a[i * lda + l];
      for (int64_t j = 0; j < n; ++j)
        row[j] += left * static_cast<double>(tb ? b[j * ldb + l] : b[l * ldb + j]);
    }
    for (int64_t j = 0; j < n; ++j) {
      const double old = beta == 0.0 ? 0.0 : beta * c[i * ldc + j];
      c[i * ldc + j] = static_cast<T>(alpha * row[j] + old);
    }
  }
}

const Runtime kSerial = {&parallel_for<1>, &threads<1>, &gemm<float>, &gemm<double>};
const Runtime kThreaded = {&parallel_for<3>, &threads<3>, &gemm<float>, &gemm<double>};

constexpr uint64_t kDraws = 20;  // cases per shape, regime and instruction set

struct Shape {
  int64_t B, C, M, D;
};

enum class Values { kPlain, kFar, kCoincident, kHuge, kNonFinite, kCount };

struct Case {
  Shape shape;
  Regime regime = Regime::kFew;
  DType features = DType::kFloat32, prototypes = DType::kFloat32;
  Layout features_layout = Layout::kContiguous, prototypes_layout = Layout::kContiguous;
  Values values = Values::kPlain;
  Reduction reduction = Reduction::kMean;
  bool int32_target = false, detach_focal = false, weighted = false, ignore_some = false;
  double gamma = 2.0, diversity_weight = 1.0;
  bool need_features = true, need_prototypes = true;
  bool brief = false;  // one forward and one backward, compared with nothing: for large shapes
  uint64_t seed = 0;

  std::string name(const char* isa) const {
    return std::string(isa) + " B=" + std::to_string(shape.B) + " C=" + std::to_string(shape.C) +
           " M=" + std::to_string(shape.M) + " D=" + std::to_string(shape.D) +
           " regime=" + std::to_string(static_cast<int>(regime)) +
           " dtypes=" + std::to_string(static_cast<int>(features)) +
           std::to_string(static_cast<int>(prototypes)) +
           " layouts=" + std::to_string(static_cast<int>(features_layout)) +
           std::to_string(static_cast<int>(prototypes_layout)) +
           " values=" + std::to_string(static_cast<int>(values)) +
           " reduction=" + std::to_string(static_cast<int>(reduction)) +
           " seed=" + std::to_string(seed);
  }
};

void put_values(const Case& c, Random& random, Array& features, Array& prototypes) {
  const double scale = c.values == Values::kFar ? 12.0 : c.values == Values::kHuge ? 3e4 : 1.0;
  features.fill([&] { return scale * random.uniform(); });
  prototypes.fill([&] { return random.uniform(); });
  const int64_t B = c.shape.B, D = c.shape.D;
  if (c.values == Values::kCoincident)
    for (int64_t i = 0; i < B; ++i)
      for (int64_t d = 0; d < D; ++d) features.set(prototypes.at(i % c.shape.C, 0, d), i, d);
  if (c.values == Values::kNonFinite && B > 0) {
    const double special[3] = {NAN, INFINITY, -INFINITY};
    for (int n = 0; n < 3; ++n) features.set(special[n], random.below(B), random.below(D));
  }
}

// |x - y| / (|y| + what rounding to `type` makes of numbers below its range), NaN if any is.
double relative_error(const std::vector<double>& x, const std::vector<double>& y, DType type) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    size += y[i] * y[i];
  }
  if (difference == 0) return 0;
  const double smallest = type == DType::kFloat16 ? 1e-5 : 1e-30;
  return std::sqrt(difference) / (std::sqrt(size) + smallest * std::sqrt(x.size()));
}

std::vector<double> values_of(const void* data, DType type, int64_t n) {
  std::vector<double> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = read(data, type, i);
  return values;
}

struct Result {
  std::vector<char> loss, features, prototypes;
  std::vector<char> distances, pulled_features, pulled_prototypes;
  bool operator==(const Result&) const = default;
};

class Run {
 public:
  Run(const Case& c, const Kernels& variant)
      : case_(c),
        variant_(variant),
        where_(c.name(variant.name)),
        features_(c.features, {c.shape.B, c.shape.D}, c.features_layout),
        prototypes_(c.prototypes, {c.shape.C, c.shape.M, c.shape.D}, c.prototypes_layout),
        weights_(DType::kFloat64, {c.shape.C}, Layout::kReversed),
        upstream_array_(DType::kFloat32, {std::max<int64_t>(c.shape.B, 1)}, Layout::kReversed) {
    Random random(c.seed);
    put_values(c, random, features_, prototypes_);
    weights_.fill([&] { return 1.5 + random.uniform(); });
    upstream_array_.fill([&] { return random.uniform(); });
    describe(random);
  }

  void check() {
    if (case_.brief) {
      compute(kThreaded);
      return;
    }
    const Result first = compute(kSerial), second = compute(kThreaded);
    expect(first == second, where_, "differs between 1 and 3 threads");
    const int64_t losses = problem_.reduction == Reduction::kNone ? problem_.B : 1;
    const auto loss = values_of(first.loss.data(), type_, losses);
    if (case_.values == Values::kNonFinite) return check_nan_rows(loss);
    if (case_.values == Values::kHuge) return;
    check_distances(first);

    const Truth truth = definition(problem_, features_, prototypes_, upstream_);
    if (std::isnan(truth.loss.empty() ? 0.0 : truth.loss[0]))
      expect(std::isnan(loss[0]), where_, "the mean over no rows is not NaN");
    else
      compare(loss, truth.loss, type_, "loss");
    // A prototype on a feature makes (1-s)^(gamma-1) a matter of rounding.
    if (case_.values == Values::kCoincident && case_.gamma < 1) return;
    if (case_.need_features)
      compare(values_of(first.features.data(), case_.features, problem_.B * problem_.D),
              truth.grad_features, case_.features, "gradient of the features");
    if (case_.need_prototypes)
      compare(values_of(first.prototypes.data(), case_.prototypes, problem_.K() * problem_.D),
              truth.grad_prototypes, case_.prototypes, "gradient of the prototypes");
  }

 private:
  void describe(Random& random) {
    Problem& p = problem_;
    p.B = case_.shape.B, p.C = case_.shape.C, p.M = case_.shape.M, p.D = case_.shape.D;
    p.features = {features_.data(),    case_.features,     p.B, p.D,
                  features_.stride(0), features_.stride(1)};
    p.prototypes = prototypes_.data();
    p.prototypes_dtype = case_.prototypes;
    for (int axis = 0; axis < 3; ++axis) p.prototype_strides[axis] = prototypes_.stride(axis);
    for (int64_t i = 0; i < p.B; ++i) {
      const bool ignored = case_.ignore_some && (p.B == 1 || random.below(3) == 0);
      const int64_t y = ignored ? p.ignore_index : random.below(p.C);
      targets64_.push_back(y);
      targets32_.push_back(static_cast<int32_t>(y));
    }
    p.target_is_int32 = case_.int32_target;
    p.target = case_.int32_target ? static_cast<const void*>(targets32_.data()) : targets64_.data();
    if (case_.weighted) {
      p.class_weights = weights_.data();
      p.class_weights_dtype = weights_.type();
      p.class_weights_stride = weights_.stride(0);
    }
    p.sigma = 2.0 * static_cast<double>(p.D);
    p.gamma = case_.gamma;
    p.diversity_weight = case_.diversity_weight;
    p.detach_focal = case_.detach_focal;
    p.reduction = case_.reduction;
    p.regime = case_.regime;
    type_ = computes_in_double(p) ? DType::kFloat64 : DType::kFloat32;
    upstream_ = {upstream_array_.data(), upstream_array_.type(),
                 p.reduction == Reduction::kNone ? upstream_array_.stride(0) : 0};
  }

  // Outputs start as NaN patterns: an element left unwritten shows.
  Result compute(const Runtime& runtime) {
    ++calls;
    int64_t counted = 0;
    expect(find_bad_target(problem_, &counted) == -1, where_, "target refused");
    const int64_t losses = problem_.reduction == Reduction::kNone ? problem_.B : 1;
    const int64_t item = item_size(type_);
    Result result;
    result.loss.assign(losses * item, '\xff');
    std::vector<char> unsaved = result.loss;
    std::vector<char> saved(saved_numel(problem_) * item, '\xff');
    variant_.forward(problem_, counted, runtime, result.loss.data(), saved.data());
    if (!case_.brief) {
      variant_.forward(problem_, counted, runtime, unsaved.data(), nullptr);
      expect(unsaved == result.loss, where_, "the loss depends on what is saved for backward");
    }
    if (case_.need_features)
      result.features.assign(problem_.B * problem_.D * item_size(case_.features), '\xff');
    if (case_.need_prototypes)
      result.prototypes.assign(problem_.K() * problem_.D * item_size(case_.prototypes), '\xff');
    const std::vector<char> before = saved;
    const Result poisoned = result;
    run_backward(runtime, saved, result);
    if (!case_.brief) {
      Result again = poisoned;
      run_backward(runtime, saved, again);
      expect(again.features == result.features && again.prototypes == result.prototypes, where_,
             "two backwards differ");
    }
    expect(saved == before, where_, "the backward wrote what the forward saved");
    if (!case_.brief) measure(runtime, result);
    if (!case_.brief) {
      Result at_once = poisoned;
      std::vector<char> saved_at_once(saved.size(), '\xff');
      variant_.value_and_grad(problem_, counted, upstream_, runtime, at_once.loss.data(),
                              saved_at_once.data(),
                              case_.need_features ? at_once.features.data() : nullptr,
                              case_.need_prototypes ? at_once.prototypes.data() : nullptr);
      expect(at_once.loss == result.loss && at_once.features == result.features &&
                 at_once.prototypes == result.prototypes && saved_at_once == saved,
             where_, "loss and gradients at once differ from one after the other");
    }
    return result;
  }

  void run_backward(const Runtime& runtime, const std::vector<char>& saved, Result& result) {
    int64_t counted = 0;
    find_bad_target(problem_, &counted);
    variant_.backward(problem_, counted, upstream_, saved.data(), runtime,
                      case_.need_features ? result.features.data() : nullptr,
                      case_.need_prototypes ? result.prototypes.data() : nullptr);
  }

  // Distances, and their gradients for g = q.
  void measure(const Runtime& runtime, Result& result) {
    const int64_t B = problem_.B, K = problem_.K(), D = problem_.D;
    result.distances.assign(B * K * item_size(type_), '\xff');
    result.pulled_features.assign(B * D * item_size(case_.features), '\xff');
    result.pulled_prototypes.assign(K * D * item_size(case_.prototypes), '\xff');
    variant_.distances(problem_, runtime, result.distances.data());
    variant_.distances_backward(problem_, {result.distances.data(), type_, B, K, K, 1}, runtime,
                                case_.need_features ? result.pulled_features.data() : nullptr,
                                case_.need_prototypes ? result.pulled_prototypes.data() : nullptr);
  }

  void check_distances(const Result& got) {
    const int64_t B = problem_.B, K = problem_.K(), D = problem_.D, M = problem_.M;
    std::vector<double> q(B * K, 0.0), grad_f(B * D, 0.0), grad_w(K * D, 0.0);
    for (int64_t i = 0; i < B; ++i)
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t d = 0; d < D; ++d)
          q[i * K + k] += std::pow(features_.at(i, d) - prototypes_.at(k / M, k % M, d), 2);
        for (int64_t d = 0; d < D; ++d) {
          const double pull =
              2.0 * q[i * K + k] * (features_.at(i, d) - prototypes_.at(k / M, k % M, d));
          grad_f[i * D + d] += pull;
          grad_w[k * D + d] -= pull;
        }
      }
    compare(values_of(got.distances.data(), type_, B * K), q, type_, "distances");
    // Half precision holds no gradient beyond 65504.
    if (case_.need_features && case_.features != DType::kFloat16)
      compare(values_of(got.pulled_features.data(), case_.features, B * D), grad_f, case_.features,
              "distances' gradient of the features");
    if (case_.need_prototypes && case_.prototypes != DType::kFloat16)
      compare(values_of(got.pulled_prototypes.data(), case_.prototypes, K * D), grad_w,
              case_.prototypes, "distances' gradient of the prototypes");
  }

  void check_nan_rows(const std::vector<double>& loss) {
    if (problem_.reduction != Reduction::kNone) return;
    for (int64_t i = 0; i < problem_.B; ++i) {
      bool finite = true;
      for (int64_t d = 0; d < problem_.D; ++d) finite &= std::isfinite(features_.at(i, d));
      if (problem_.target_at(i) == problem_.ignore_index)
        expect(loss[i] == 0.0, where_, "an ignored row has a loss");
      else
        expect(std::isnan(loss[i]) != finite, where_, "NaN or inf did not come out as NaN");
    }
  }

  void compare(const std::vector<double>& got, const std::vector<double>& want, DType type,
               const char* what) {
    const double bound = item_size(type) == 2       ? 1e-2
                         : type_ == DType::kFloat32 ? 1e-4
                         : type == DType::kFloat32  ? 1e-6
                                                    : 1e-10;
    const double error = relative_error(got, want, type);
    char text[64];
    std::snprintf(text, sizeof text, ", relative error %.3g", error);
    expect(error <= bound, where_, what + std::string(text));
  }

  const Case case_;
  const Kernels variant_;
  const std::string where_;
  Array features_, prototypes_, weights_, upstream_array_;
  std::vector<int64_t> targets64_;
  std::vector<int32_t> targets32_;
  Problem problem_;
  UpstreamView upstream_;
  DType type_ = DType::kFloat32;
};

// Sizes around the vector widths and the kernels' tiles; the last ones exceed the budgets of the
// saved affinities and of the moment matrix.
const Shape kShapes[] = {
    {0, 3, 1, 5},     {1, 1, 1, 1},     {1, 2, 1, 1},    {2, 2, 2, 3},     {5, 2, 1, 7},
    {7, 9, 1, 17},    {33, 9, 3, 31},   {63, 3, 2, 129}, {64, 8, 8, 64},   {65, 5, 1, 4},
    {3, 70, 1, 5},    {130, 67, 2, 33}, {67, 63, 1, 65}, {20, 200, 1, 16}, {129, 33, 3, 9},
    {97, 65, 1, 2},   {600, 66, 1, 3},  {300, 9, 1, 40}, {5000, 3, 1, 9},  {3, 65, 2, 129},
    {2, 200, 1, 193},
};

Case draw(const Shape& shape, Regime regime, uint64_t seed) {
  Random random(seed);
  Case c;
  c.shape = shape;
  c.regime = regime;
  c.seed = seed;
  c.features = static_cast<DType>(random.below(4));
  c.prototypes = random.below(2) ? c.features : static_cast<DType>(random.below(4));
  c.features_layout = static_cast<Layout>(random.below(static_cast<int>(Layout::kCount)));
  // Expanded prototypes are all equal: nothing but ties.
  c.prototypes_layout = static_cast<Layout>(random.below(static_cast<int>(Layout::kExpandedRows)));
  c.values = static_cast<Values>(random.below(static_cast<int>(Values::kCount)));
  c.reduction = static_cast<Reduction>(random.below(3));
  c.int32_target = random.below(2);
  c.detach_focal = random.below(3) == 0;
  c.weighted = random.below(2);
  c.ignore_some = random.below(3) == 0;
  const double gammas[] = {0.0, 0.5, 1.0, 2.0, 3.7};
  c.gamma = gammas[random.below(5)];
  c.diversity_weight = random.below(4) ? 1.0 : 0.0;
  c.need_features = random.below(4) != 0;
  c.need_prototypes = random.below(4) != 0 || !c.need_features;
  return c;
}

}  // namespace
}  // namespace cfal::test

int main() {
  using namespace cfal;
  using namespace cfal::test;
  const auto all = variants();
  for (const Kernels& variant : all)
    for (const Regime regime : {Regime::kFew, Regime::kMany})
      for (size_t s = 0; s < std::size(kShapes); ++s)
        for (uint64_t n = 0; n < kDraws; ++n) {
          const Case c = draw(kShapes[s], regime, s * 1000 + n);
          Run(c, variant).check();
        }
  // Beyond the budgets, once each: more rows than may be kept, and a moment matrix too large to
  // keep.
  for (const Shape& shape : {Shape{70, 65536, 1, 2}, Shape{3, 1100, 1, 1030}}) {
    Case c;
    c.shape = shape;
    c.regime = Regime::kMany;
    c.brief = true;
    Run(c, all.back()).check();
  }
  std::string names;
  for (const Kernels& variant : all) names += std::string(" ") + variant.name;
  std::printf("%lld runs on%s under the sanitizers, %d failures\n", static_cast<long long>(calls),
              names.c_str(), failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
