// Starts the kernels, and holds what lives as long as the process: facts about devices, tickets.
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "cfal.h"
#include "dispatch.h"
#include "tickets.h"

namespace cfal::cuda {
namespace {

constexpr int kMostDevices = 64;

__device__ unsigned ticket_table[kTicketSets * kTickets];

struct DeviceState {
  Device device;
  unsigned* tickets = nullptr;
};

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is told here, not once more by the next call
  throw std::runtime_error(std::string("cfal: ") + what + ": " + cudaGetErrorString(error));
}

// While it lives, calls that a capture in progress elsewhere would forbid are allowed: the first
// use of a device may load this module.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "cannot ask the device");
  return value;
}

DeviceState ask(int index) {
  const RelaxedCapture relaxed;
  DeviceState state;
  state.device.index = index;
  state.device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  state.device.shared_per_multiprocessor =
      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
  state.device.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  void* table = nullptr;
  check(cudaGetSymbolAddress(&table, ticket_table), "these kernels do not run on the device");
  state.tickets = static_cast<unsigned*>(table);
  return state;
}

const DeviceState& state_of(int index) {
  static std::mutex mutex;
  static std::array<DeviceState, kMostDevices> states;
  if (index < 0 || index >= kMostDevices) throw std::runtime_error("cfal: no such CUDA device");
  const std::lock_guard<std::mutex> lock(mutex);
  if (states[index].tickets == nullptr) states[index] = ask(index);
  return states[index];
}

// The counters of a launch. `spare` is workspace that is cleared for the purpose if all are taken.
unsigned* take_tickets(const Device& device, Stream stream, double* spare) {
  static TicketSets sets;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cannot ask the stream");
  // The handle of the per-thread stream means another stream in every thread.
  const bool unbound = status != cudaStreamCaptureStatusNone || stream == cudaStreamPerThread;
  const int set = sets.take(device.index, stream, unbound);
  if (set >= 0) return state_of(device.index).tickets + set * kTickets;
  check(cudaMemsetAsync(spare, 0, kTickets * sizeof(unsigned), stream), "cannot clear counters");
  return reinterpret_cast<unsigned*>(spare);
}

class Launch {
 public:
  Launch(const Device& device, Stream stream) : device_(device), stream_(stream) {}

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), int64_t blocks, int64_t threads, int64_t shared,
                  const Arguments& arguments) const {
    if (blocks > std::numeric_limits<int32_t>::max())
      throw std::runtime_error("cfal: too many rows for one launch");
    // Above 48 KiB the limit has to be raised first, for each kernel and device.
    if (shared > 48 * 1024)
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)),
            "cannot raise the limit of shared memory");
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    check(
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), parameters,
                         static_cast<size_t>(shared), stream_),
        "cannot launch the kernel");
  }

 private:
  const Device& device_;
  const Stream stream_;
};

void check_regime(const Problem& p) {
  if (p.regime != Regime::kFew || p.K() > kMostPrototypes)
    throw std::runtime_error("cfal: the CUDA kernels serve up to 64 prototypes (C * M), got " +
                             std::to_string(p.K()));
}

}  // namespace

const Device& device_facts(int index) { return state_of(index).device; }

int64_t forward_workspace(const Problem& p, const Device& device) {
  return plan_forward(p, device).workspace_doubles;
}

int64_t backward_workspace(const Problem& p, const Device& device, bool need_prototypes) {
  return plan_backward(p, device, need_prototypes).workspace_doubles;
}

void forward(const Problem& p, const Device& device, Stream stream, void* loss, void* saved,
             double* workspace) {
  check_regime(p);
  const ForwardPlan plan = plan_forward(p, device);
  ForwardArguments arguments{p, plan, loss, saved, workspace, nullptr};
  if (plan.takes_tickets)
    arguments.tickets = take_tickets(device, stream, workspace + plan.spare_doubles());
  dispatch(arguments, Launch(device, stream));
}

void backward(const Problem& p, const Device& device, Stream stream, const UpstreamView& upstream,
              const void* saved, void* grad_features, void* grad_prototypes, double* workspace) {
  check_regime(p);
  const BackwardPlan plan = plan_backward(p, device, grad_prototypes != nullptr);
  BackwardArguments arguments{p,         plan,   upstream, saved, grad_features, grad_prototypes,
                              workspace, nullptr};
  if (plan.takes_tickets)
    arguments.tickets = take_tickets(device, stream, workspace + plan.spare_doubles());
  dispatch(arguments, Launch(device, stream));
}

}  // namespace cfal::cuda
