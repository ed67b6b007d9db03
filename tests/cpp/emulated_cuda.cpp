// csrc/cuda/cfal.h on the CPU: the same plans and kernels, started by the emulation.
#include "tests/cpp/emulated_cuda.h"

#include <cstdlib>

#include "cuda/cfal.h"
#include "cuda/dispatch.h"

namespace cfal::cuda {
namespace {

unsigned ticket_set[kTickets];

unsigned* tickets() {
  for (const unsigned count : ticket_set)
    if (count != 0) throw std::runtime_error("emulated kernel: a ticket is not 0 between launches");
  return ticket_set;
}

struct Launch {
  template <class Arguments>
  void operator()(void (*kernel)(const Arguments), int64_t blocks, int64_t threads, int64_t shared,
                  const Arguments& arguments) const {
    emulated::Machine& machine = emulated::machine();
    const char* order = std::getenv("CFAL_EMULATED_ORDER");
    machine.order =
        order != nullptr && *order == 'b' ? emulated::Order::kBackward : emulated::Order::kForward;
    machine.launch(kernel, blocks, threads, shared, arguments);
  }
};

}  // namespace

// A small device: a few blocks for each kernel, so that they meet. CFAL_EMULATED_SHARED sets its
// shared memory in KiB.
const Device& device_facts(int) {
  static Device device;
  const char* text = std::getenv("CFAL_EMULATED_SHARED");
  const int64_t shared = (text != nullptr ? std::atoi(text) : 100) * int64_t{1024};
  device = {0, 3, shared, shared - 1024};
  return device;
}

int64_t forward_workspace(const Problem& p, const Device& device) {
  return plan_forward(p, device).workspace_doubles;
}

int64_t backward_workspace(const Problem& p, const Device& device, bool need_prototypes) {
  return plan_backward(p, device, need_prototypes).workspace_doubles;
}

void forward(const Problem& p, const Device& device, Stream, void* loss, void* saved,
             double* workspace) {
  dispatch(ForwardArguments{p, plan_forward(p, device), loss, saved, workspace, tickets()},
           Launch());
}

void backward(const Problem& p, const Device& device, Stream, const UpstreamView& upstream,
              const void* saved, void* grad_features, void* grad_prototypes, double* workspace) {
  const BackwardPlan plan = plan_backward(p, device, grad_prototypes != nullptr);
  dispatch(BackwardArguments{p, plan, upstream, saved, grad_features, grad_prototypes, workspace,
                             tickets()},
           Launch());
}

}  // namespace cfal::cuda
