// What cuda.cpp asks torch about the device: a guard and the current stream, through the stable
// ABI. Under CFAL_EMULATED_CUDA the same file serves CPU tensors under names of its own
// (`torch.ops.cfal_emulated`), for tests on machines without a GPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "../cuda/cfal.h"

#if defined(CFAL_EMULATED_CUDA)

#define CFAL_DEVICE_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(cfal_emulated, CPU, m)

namespace cfal::torch_door {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() {}
};

inline cuda::Stream current_stream(int32_t) { return nullptr; }

}  // namespace cfal::torch_door

#else

#define CFAL_DEVICE_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(cfal, CUDA, m)

// Declared in shim.h for builds of torch's own CUDA parts alone (USE_CUDA); libtorch_cuda exports
// it.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);

namespace cfal::torch_door {

// Makes a device current, and the one before it again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(index, &handle_));
  }
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle handle_ = nullptr;
};

inline cuda::Stream current_stream(int32_t index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  return static_cast<cuda::Stream>(stream);
}

}  // namespace cfal::torch_door

#endif
