// The NumPy door: the kernels on NumPy arrays, without torch. Messages for people come from
// cfal_kernels/numpy.py, which sees the arguments first; the checks here keep a direct call from
// reading what is not there.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/cfal.h"
#include "runtime.h"

namespace py = pybind11;

namespace cfal::numpy_door {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) throw py::value_error("cfal: " + message);
}

DType float_type(const py::array& array, const char* name) {
  if (py::isinstance<py::array_t<float>>(array)) return DType::kFloat32;
  if (py::isinstance<py::array_t<double>>(array)) return DType::kFloat64;
  const py::dtype type = array.dtype();
  if (type.kind() == 'f' && type.itemsize() == 2 && type.byteorder() != '>') return DType::kFloat16;
  throw py::type_error("cfal: " + std::string(name) +
                       " must be float16, float32 or float64 in native byte order");
}

// The kernels count strides in elements, and read elements where the processor expects them.
int64_t stride(const py::array& array, int axis, const char* name) {
  const py::ssize_t bytes = array.strides(axis), item = array.itemsize();
  require(bytes % item == 0 && reinterpret_cast<uintptr_t>(array.data()) % item == 0,
          std::string(name) + " must be aligned; pass a copy");
  return bytes / item;
}

struct Parameters {
  double sigma, margin, gamma, diversity_weight;
  bool detach_focal;
  int64_t reduction, ignore_index, regime;
};

Problem make_problem(const py::array& features, const py::array& prototypes,
                     const py::array& target, const std::optional<py::array>& class_weights,
                     const Parameters& parameters) {
  require(features.ndim() == 2 && prototypes.ndim() == 3 && target.ndim() == 1,
          "features, prototypes and target must have 2, 3 and 1 dimensions");
  Problem p;
  p.B = features.shape(0);
  p.D = features.shape(1);
  p.C = prototypes.shape(0);
  p.M = prototypes.shape(1);
  require(prototypes.shape(2) == p.D, "features have " + std::to_string(p.D) +
                                          " columns, prototypes " +
                                          std::to_string(prototypes.shape(2)));
  require(target.shape(0) == p.B, "features have " + std::to_string(p.B) + " rows, target " +
                                      std::to_string(target.shape(0)));
  require(p.C > 0 && p.M > 0 && p.D > 0, "prototypes must not be empty");
  p.features = {features.data(),
                float_type(features, "features"),
                p.B,
                p.D,
                stride(features, 0, "features"),
                stride(features, 1, "features")};
  p.prototypes = prototypes.data();
  p.prototypes_dtype = float_type(prototypes, "prototypes");
  for (int d = 0; d < 3; ++d) p.prototype_strides[d] = stride(prototypes, d, "prototypes");
  p.target_is_int32 = py::isinstance<py::array_t<int32_t>>(target);
  if (!p.target_is_int32 && !py::isinstance<py::array_t<int64_t>>(target))
    throw py::type_error("cfal: target must be int64 or int32 in native byte order");
  p.target = target.data();
  p.target_stride = stride(target, 0, "target");
  if (class_weights) {
    require(class_weights->ndim() == 1 && class_weights->shape(0) == p.C,
            "class_weights must have " + std::to_string(p.C) + " elements");
    p.class_weights_dtype = float_type(*class_weights, "class_weights");
    require(p.class_weights_dtype != DType::kFloat16, "class_weights must be float32 or float64");
    p.class_weights = class_weights->data();
    p.class_weights_stride = stride(*class_weights, 0, "class_weights");
  }
  require(parameters.sigma > 0, "sigma must be positive");
  require(parameters.reduction >= 0 && parameters.reduction <= 2, "reduction must be 0, 1 or 2");
  require(parameters.regime == 0 || parameters.regime == 1, "regime must be 0 or 1");
  p.sigma = parameters.sigma;
  p.margin = parameters.margin;
  p.gamma = parameters.gamma;
  p.diversity_weight = parameters.diversity_weight;
  p.detach_focal = parameters.detach_focal;
  p.reduction = static_cast<Reduction>(parameters.reduction);
  p.ignore_index = parameters.ignore_index;
  p.regime = static_cast<Regime>(parameters.regime);
  require(sizes_fit(p), "features and prototypes are too large");
  return p;
}

int64_t count_rows(const Problem& p) {
  int64_t counted = 0;
  const int64_t bad = find_bad_target(p, &counted);
  if (bad >= 0)
    throw py::value_error("cfal: target has value " + std::to_string(p.target_at(bad)) +
                          " at position " + std::to_string(bad) + ", expected 0 <= target < " +
                          std::to_string(p.C) + " (number of classes) or ignore_index " +
                          std::to_string(p.ignore_index));
  return counted;
}

DType compute_type(const Problem& p) {
  return computes_in_double(p) ? DType::kFloat64 : DType::kFloat32;
}

py::array empty(std::vector<py::ssize_t> shape, DType type) {
  const char* name = type == DType::kFloat16 ? "f2" : type == DType::kFloat32 ? "f4" : "f8";
  return py::array(py::dtype(name), std::move(shape));
}

py::array empty_loss(const Problem& p) {
  return p.reduction == Reduction::kNone ? empty({p.B}, compute_type(p))
                                         : empty({}, compute_type(p));
}

py::array forward(const py::array& features, const py::array& prototypes, const py::array& target,
                  const std::optional<py::array>& class_weights, double sigma, double margin,
                  double gamma, double diversity_weight, bool detach_focal, int64_t reduction,
                  int64_t ignore_index, int64_t regime, int threads) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  py::array loss = empty_loss(p);
  void* const loss_out = loss.mutable_data();
  HostThreads host(threads);
  {
    const py::gil_scoped_release release;
    cfal::forward(p, counted, host.runtime(), loss_out, nullptr);
  }
  host.rethrow();
  return loss;
}

py::tuple value_and_grad(const py::array& grad_loss, const py::array& features,
                         const py::array& prototypes, const py::array& target,
                         const std::optional<py::array>& class_weights, double sigma, double margin,
                         double gamma, double diversity_weight, bool detach_focal,
                         int64_t reduction, int64_t ignore_index, int64_t regime, int threads) {
  const Problem p = make_problem(
      features, prototypes, target, class_weights,
      {sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index, regime});
  const int64_t counted = count_rows(p);
  const bool per_row = p.reduction == Reduction::kNone;
  require(grad_loss.ndim() == (per_row ? 1 : 0) && (!per_row || grad_loss.shape(0) == p.B),
          "grad_loss must have the shape of the loss");
  const DType grad_type = float_type(grad_loss, "grad_loss");
  require(grad_type != DType::kFloat16, "grad_loss must be float32 or float64");
  const UpstreamView upstream{grad_loss.data(), grad_type,
                              per_row ? stride(grad_loss, 0, "grad_loss") : 0};
  py::array loss = empty_loss(p);
  py::array saved = empty({saved_numel(p)}, compute_type(p));
  py::array grad_features = empty({p.B, p.D}, p.features.dtype);
  py::array grad_prototypes = empty({p.C, p.M, p.D}, p.prototypes_dtype);
  void* const loss_out = loss.mutable_data();
  void* const saved_out = saved.mutable_data();
  void* const features_out = grad_features.mutable_data();
  void* const prototypes_out = grad_prototypes.mutable_data();
  HostThreads host(threads);
  {
    const py::gil_scoped_release release;
    cfal::value_and_grad(p, counted, upstream, host.runtime(), loss_out, saved_out, features_out,
                         prototypes_out);
  }
  host.rethrow();
  return py::make_tuple(loss, grad_features, grad_prototypes);
}

py::dict build_facts() {
  py::dict facts;
  facts["isa_in_use"] = active_isa();
  facts["isa_compiled"] = compiled_isas();
  return facts;
}

}  // namespace
}  // namespace cfal::numpy_door

PYBIND11_MODULE(_numpy_door, m) {
  using namespace pybind11::literals;
  namespace door = cfal::numpy_door;
  m.doc() =
      "The CPU kernels of cfal_kernels on NumPy arrays; threads = 0 takes every core. People call "
      "cfal_kernels.numpy.";
  m.def("forward", &door::forward, "features"_a, "prototypes"_a, "target"_a, "class_weights"_a,
        "sigma"_a, "margin"_a, "gamma"_a, "diversity_weight"_a, "detach_focal"_a, "reduction"_a,
        "ignore_index"_a, "regime"_a, "threads"_a = 0, "The loss.");
  m.def("value_and_grad", &door::value_and_grad, "grad_loss"_a, "features"_a, "prototypes"_a,
        "target"_a, "class_weights"_a, "sigma"_a, "margin"_a, "gamma"_a, "diversity_weight"_a,
        "detach_focal"_a, "reduction"_a, "ignore_index"_a, "regime"_a, "threads"_a = 0,
        "The loss, and the gradients of features and prototypes.");
  m.def("build_facts", &door::build_facts, "Instruction sets compiled, and the one in use here.");
}
