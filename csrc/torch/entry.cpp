// The entry to torch.ops.cfal.loss from Python for an ordinary step: plain dense CPU tensors, a
// gradient wanted, arguments in the types that need no conversion. It answers None to every other
// call from metadata alone, whatever is unusual or wrong about it, and to one in which the operator
// finds an error: the checks in Python (cfal_kernels/_arguments.py) then serve it or say what is
// wrong. A rule that is made stricter there has to be made so here; tests/test_entry.py holds both.
//
// Compiled against torch's Python bindings, it serves that torch and that Python alone.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <optional>

#include "../core/problem.h"
#include "guess.h"
#include "handle.h"

namespace cfal::torch_door {
namespace {

// In the order of Python's call.
enum Argument {
  kFeatures,
  kPrototypes,
  kTarget,
  kClassWeights,
  kSigma,
  kMargin,
  kGamma,
  kDiversityWeight,
  kDetachFocal,
  kReduction,
  kIgnoreIndex,
  kFewLimit,
  kArguments
};

// Lets other Python threads run meanwhile, also past an exception.
class WithoutInterpreterLock {
 public:
  WithoutInterpreterLock() : state_(PyEval_SaveThread()) {}
  ~WithoutInterpreterLock() { PyEval_RestoreThread(state_); }
  WithoutInterpreterLock(const WithoutInterpreterLock&) = delete;
  WithoutInterpreterLock& operator=(const WithoutInterpreterLock&) = delete;

 private:
  PyThreadState* state_;
};

// A tensor that no subclass, mode or transform wants to see; undefined for anything else. A
// reference of our own: while the interpreter runs on, the object may be given another tensor.
at::Tensor plain(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return {};
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return is_plain_cpu(tensor) && tensor.layout() == at::kStrided ? tensor : at::Tensor();
}

bool is_float(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// The number of an exact float, NaN of anything else.
double real(PyObject* object) {
  return PyFloat_CheckExact(object) ? PyFloat_AS_DOUBLE(object) : NAN;
}

std::optional<int64_t> whole(PyObject* object) {
  if (!PyLong_CheckExact(object)) return std::nullopt;
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (overflow != 0) return std::nullopt;
  return value;
}

std::optional<Reduction> reduction_of(PyObject* object) {
  if (!PyUnicode_CheckExact(object)) return std::nullopt;
  if (PyUnicode_CompareWithASCIIString(object, "mean") == 0) return Reduction::kMean;
  if (PyUnicode_CompareWithASCIIString(object, "none") == 0) return Reduction::kNone;
  if (PyUnicode_CompareWithASCIIString(object, "sum") == 0) return Reduction::kSum;
  return std::nullopt;
}

// Whether a gradient will be asked for, and nothing else wants to see the call.
bool is_ordinary_moment() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  return at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled() &&
         !at::impl::torch_function_mode_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::SavedTensorDefaultHooks::get_hooks().has_value() &&
         !keys.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !keys.has(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

bool has_tangent(const at::Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }

// The loss, or nullopt where the call is not one for this entry.
std::optional<at::Tensor> serve(PyObject* const* arguments) {
  const at::Tensor f = plain(arguments[kFeatures]), w = plain(arguments[kPrototypes]),
                   y = plain(arguments[kTarget]);
  if (!f.defined() || !w.defined() || !y.defined() || !is_ordinary_moment()) return std::nullopt;
  if (!(f.requires_grad() || w.requires_grad()) || has_tangent(f) || has_tangent(w))
    return std::nullopt;
  if (!is_float(f) || !is_float(w) || (y.scalar_type() != at::kLong && y.scalar_type() != at::kInt))
    return std::nullopt;
  if (f.dim() != 2 || y.dim() != 1 || (w.dim() != 2 && w.dim() != 3)) return std::nullopt;
  const int64_t classes = w.size(0), centres = w.dim() == 3 ? w.size(1) : 1;
  if (f.size(0) != y.size(0) || f.size(1) != w.size(-1) || f.size(1) == 0 || classes == 0 ||
      centres == 0)
    return std::nullopt;

  std::optional<at::Tensor> class_weights;
  if (arguments[kClassWeights] != Py_None) {
    class_weights = plain(arguments[kClassWeights]);
    const at::Tensor& weights = *class_weights;
    if (!weights.defined() || weights.dim() != 1 || weights.size(0) != classes ||
        weights.requires_grad() ||
        (weights.scalar_type() != at::kFloat && weights.scalar_type() != at::kDouble))
      return std::nullopt;
  }

  const double sigma = real(arguments[kSigma]), margin = real(arguments[kMargin]),
               gamma = real(arguments[kGamma]),
               diversity_weight = real(arguments[kDiversityWeight]);
  if (!(std::isfinite(sigma) && sigma > 0.0 && std::isfinite(margin) && std::isfinite(gamma) &&
        gamma >= 0.0 && std::isfinite(diversity_weight)))
    return std::nullopt;
  if (!PyBool_Check(arguments[kDetachFocal])) return std::nullopt;
  const auto reduction = reduction_of(arguments[kReduction]);
  const auto ignore_index = whole(arguments[kIgnoreIndex]), few_limit = whole(arguments[kFewLimit]);
  if (!reduction || !ignore_index || !few_limit) return std::nullopt;
  const Regime regime = classes * centres <= *few_limit ? Regime::kFew : Regime::kMany;

  static const auto op = find<Loss>("cfal::loss");
  const WithoutInterpreterLock unlocked;
  return op.call(f, w, y, class_weights, sigma, margin, gamma, diversity_weight,
                 arguments[kDetachFocal] == Py_True, static_cast<int64_t>(*reduction),
                 *ignore_index, static_cast<int64_t>(regime));
}

PyObject* loss(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != kArguments)
    return PyErr_Format(PyExc_TypeError, "loss takes %d arguments, got %zd", int{kArguments},
                        count);
  try {
    if (std::optional<at::Tensor> result = serve(arguments))
      return THPVariable_Wrap(std::move(*result));
  } catch (python_error& error) {  // raised by a kernel in Python: an interrupt, say
    error.restore();
    return nullptr;
  } catch (pybind11::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception&) {
    // The call fails again where its message is made for users.
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"loss", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&loss)), METH_FASTCALL,
     "The loss of an ordinary call, None for any other."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "cfal_torch_autograd",
                      "The entry to torch.ops.cfal.loss for an ordinary step.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace
}  // namespace cfal::torch_door

PyMODINIT_FUNC PyInit_cfal_torch_autograd() { return PyModule_Create(&cfal::torch_door::module); }
