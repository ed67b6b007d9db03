// The NumPy door: the kernels on NumPy arrays, without torch. Messages for people come from
// cfal_kernels/numpy.py, which sees the arguments first; the checks here keep a direct call from
// reading what is not there.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

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

struct Arguments {
  py::array features, prototypes, target;
  std::optional<py::array> class_weights;
  double sigma, margin, gamma, diversity_weight;
  bool detach_focal;
  int64_t reduction, ignore_index, regime;

  Problem problem() const {
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
    require(sigma > 0, "sigma must be positive");
    require(reduction >= 0 && reduction <= 2, "reduction must be 0, 1 or 2");
    require(regime == 0 || regime == 1, "regime must be 0 or 1");
    p.sigma = sigma;
    p.margin = margin;
    p.gamma = gamma;
    p.diversity_weight = diversity_weight;
    p.detach_focal = detach_focal;
    p.reduction = static_cast<Reduction>(reduction);
    p.ignore_index = ignore_index;
    p.regime = static_cast<Regime>(regime);
    return p;
  }
};

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

py::array empty_like_type(DType type, std::vector<py::ssize_t> shape) {
  const char* name = type == DType::kFloat16 ? "f2" : type == DType::kFloat32 ? "f4" : "f8";
  return py::array(py::dtype(name), std::move(shape));
}

// (loss, grad_features, grad_prototypes); the gradients are None where they are not wanted.
// grad_loss is a number for the reductions "mean" and "sum", an array [B] for "none".
py::tuple loss_and_gradients(const Arguments& arguments, const py::array& grad_loss,
                             bool want_features, bool want_prototypes, int threads) {
  const Problem p = arguments.problem();
  const int64_t counted = count_rows(p);
  const DType type = computes_in_double(p) ? DType::kFloat64 : DType::kFloat32;
  const bool per_row = p.reduction == Reduction::kNone;
  const bool differentiate = want_features || want_prototypes;

  UpstreamView upstream{grad_loss.data(), float_type(grad_loss, "grad_loss"), 0};
  require(upstream.dtype != DType::kFloat16, "grad_loss must be float32 or float64");
  require(grad_loss.ndim() == (per_row ? 1 : 0) && (!per_row || grad_loss.shape(0) == p.B),
          "grad_loss must have the shape of the loss");
  if (per_row) upstream.stride = stride(grad_loss, 0, "grad_loss");

  using Shape = std::vector<py::ssize_t>;
  py::array loss = empty_like_type(type, per_row ? Shape{p.B} : Shape{});
  py::array saved = empty_like_type(type, Shape{differentiate ? saved_numel(p) : 0});
  py::object grad_features = py::none(), grad_prototypes = py::none();
  void *features_out = nullptr, *prototypes_out = nullptr;
  if (want_features) {
    py::array array = empty_like_type(p.features.dtype, {p.B, p.D});
    features_out = array.mutable_data();
    grad_features = array;
  }
  if (want_prototypes) {
    py::array array = empty_like_type(p.prototypes_dtype, {p.C, p.M, p.D});
    prototypes_out = array.mutable_data();
    grad_prototypes = array;
  }
  void* const loss_out = loss.mutable_data();
  void* const saved_out = differentiate ? saved.mutable_data() : nullptr;

  HostThreads host(threads);
  {
    const py::gil_scoped_release release;
    forward(p, counted, host.runtime(), loss_out, saved_out);
    if (differentiate)
      backward(p, counted, upstream, saved_out, host.runtime(), features_out, prototypes_out);
  }
  host.rethrow();
  return py::make_tuple(loss, grad_features, grad_prototypes);
}

}  // namespace
}  // namespace cfal::numpy_door

PYBIND11_MODULE(_numpy_door, m) {
  using cfal::numpy_door::Arguments;
  m.doc() = "The CPU kernels of cfal_kernels on NumPy arrays; use cfal_kernels.numpy.";
  m.def(
      "loss_and_gradients",
      [](py::array features, py::array prototypes, py::array target,
         std::optional<py::array> class_weights, double sigma, double margin, double gamma,
         double diversity_weight, bool detach_focal, int64_t reduction, int64_t ignore_index,
         int64_t regime, py::array grad_loss, bool want_features, bool want_prototypes,
         int threads) {
        const Arguments arguments{std::move(features),
                                  std::move(prototypes),
                                  std::move(target),
                                  std::move(class_weights),
                                  sigma,
                                  margin,
                                  gamma,
                                  diversity_weight,
                                  detach_focal,
                                  reduction,
                                  ignore_index,
                                  regime};
        return cfal::numpy_door::loss_and_gradients(arguments, grad_loss, want_features,
                                                    want_prototypes, threads);
      },
      py::arg("features").noconvert(), py::arg("prototypes").noconvert(),
      py::arg("target").noconvert(), py::arg("class_weights").none(true), py::kw_only(),
      py::arg("sigma"), py::arg("margin"), py::arg("gamma"), py::arg("diversity_weight"),
      py::arg("detach_focal"), py::arg("reduction"), py::arg("ignore_index"), py::arg("regime"),
      py::arg("grad_loss"), py::arg("want_features"), py::arg("want_prototypes"),
      py::arg("threads") = 0,
      "(loss, grad_features or None, grad_prototypes or None) of features [B, D], prototypes "
      "[C, M, D], target [B]; threads = 0 takes every core.");
  m.def("active_isa", [] { return std::string(cfal::active_isa()); });
  m.def("compiled_isas", [] { return std::string(cfal::compiled_isas()); });
}
