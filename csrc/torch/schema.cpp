// The operators' schemas, one definition for every device. Ops carry the same names in csrc/cpu and
// csrc/cuda. value_and_grad, forward and backward for an upstream gradient that is known before, is
// for the CPU alone: a GPU's two launches have nothing to gain from it. With reduction "none" every
// row gets the one upstream gradient. squared_distances, of rows to all prototypes, is for the CPU
// alone as well.
#include <torch/csrc/stable/library.h>

#if defined(CFAL_EMULATED_CUDA)
STABLE_TORCH_LIBRARY(cfal_emulated, m) {
#else
STABLE_TORCH_LIBRARY(cfal, m) {
#endif
  m.def(
      "forward(Tensor features, Tensor prototypes, Tensor target, Tensor? class_weights, float "
      "sigma, float margin, "
      "float gamma, float diversity_weight, bool detach_focal, int reduction, int ignore_index, "
      "int regime, bool save) "
      "-> (Tensor loss, Tensor saved)");
  m.def(
      "backward(Tensor grad_loss, Tensor saved, Tensor features, Tensor prototypes, Tensor target, "
      "Tensor? class_weights, float sigma, float margin, float gamma, float diversity_weight, bool "
      "detach_focal, "
      "int reduction, int ignore_index, int regime, bool need_features, bool need_prototypes) "
      "-> (Tensor grad_features, Tensor grad_prototypes)");
  m.def(
      "value_and_grad(Tensor features, Tensor prototypes, Tensor target, Tensor? class_weights, "
      "float upstream, float sigma, float margin, float gamma, float diversity_weight, bool "
      "detach_focal, int reduction, int ignore_index, int regime, bool need_features, bool "
      "need_prototypes) "
      "-> (Tensor loss, Tensor saved, Tensor grad_features, Tensor grad_prototypes)");
  m.def("squared_distances(Tensor features, Tensor prototypes) -> Tensor");
  m.def(
      "squared_distances_backward(Tensor grad, Tensor features, Tensor prototypes, bool "
      "need_features, bool need_prototypes) -> (Tensor grad_features, Tensor grad_prototypes)");
}
