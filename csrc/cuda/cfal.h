// Contract of the CUDA kernels: the few-prototype regime, C M up to 64.
//
// forward   writes loss ([B] for Reduction::kNone, else one value) and, when saved is not null, the
//           FewLayout{B, K}.numel() elements that `backward` reads.
// backward  writes the gradients that are asked for (null: not asked), contiguous, in the inputs'
// own
//           dtypes; it reads `saved` and never writes it, so that it can run again.
//
// All pointers are device memory of `device`, which is current; views may have any strides. Each
// call is one kernel on `stream`: no synchronisation, no allocation, so that a graph can capture
// it. workspace: the number of doubles that forward_workspace or backward_workspace states,
// uninitialised (null for 0). loss and saved have the compute type: float64 if features or
// prototypes are, else float32.
//
// A target that is neither a class nor ignore_index stops the kernel in a device-side assertion, as
// torch's cross_entropy. Results are bitwise equal from run to run on one device. NaN or inf in a
// row gives NaN in its loss; an ignored row gives exactly 0.
//
// Throws std::runtime_error where CUDA refuses.
#pragma once

#include <cstdint>

#include "../core/problem.h"
#include "../core/saved.h"
#include "plan.h"

struct CUstream_st;  // what cudaStream_t points to

namespace cfal::cuda {

using Stream = CUstream_st*;

// Facts about a device, asked once per process.
const Device& device_facts(int index);

int64_t forward_workspace(const Problem& problem, const Device& device);
int64_t backward_workspace(const Problem& problem, const Device& device, bool need_prototypes);

void forward(const Problem& problem, const Device& device, Stream stream, void* loss, void* saved,
             double* workspace);

void backward(const Problem& problem, const Device& device, Stream stream,
              const UpstreamView& grad_loss, const void* saved, void* grad_features,
              void* grad_prototypes, double* workspace);

}  // namespace cfal::cuda
