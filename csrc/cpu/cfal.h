// Contract of the CPU kernels.
//
// forward writes loss ([B] for Reduction::kNone, else one value) and, when saved is not null,
// saved_numel(problem) elements.
//
// backward writes the gradients that are asked for (null: not asked), contiguous, in the inputs'
// own dtypes; it reads `saved` and never writes it, so that it can run again.
//
// value_and_grad is the two for an upstream gradient that is known beforehand (one value, or one a
// row, by its stride), bit for bit, where it can in one pass; saved is not null.
//
// distances writes q [B, K] = |f_i - w_k|^2 in the compute type; distances_backward the gradients
// of sum_ik g_ik q_ik, for g of the compute type. Of the problem both read sizes, features and
// prototypes alone.
//
// loss and saved have the compute type: float64 if features or prototypes are, else float32.
// Targets must have been checked with find_bad_target, which also counts the rows that are not
// ignored. Results are bitwise equal from run to run and for every number of threads on one
// machine. NaN or inf in a row gives NaN in its loss; an ignored row gives exactly 0.
#pragma once

#include <cstdint>

#include "../core/problem.h"
#include "../core/saved.h"
#include "runtime.h"

namespace cfal {

void forward(const Problem& problem, int64_t counted_rows, const Runtime& runtime, void* loss,
             void* saved);

void backward(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss,
              const void* saved, const Runtime& runtime, void* grad_features,
              void* grad_prototypes);

void value_and_grad(const Problem& problem, int64_t counted_rows, const UpstreamView& grad_loss,
                    const Runtime& runtime, void* loss, void* saved, void* grad_features,
                    void* grad_prototypes);

void distances(const Problem& problem, const Runtime& runtime, void* q);

void distances_backward(const Problem& problem, const MatrixView& g, const Runtime& runtime,
                        void* grad_features, void* grad_prototypes);

// The instruction set in use ("baseline", "avx2", "avx512"): the best one that this machine and
// CFAL_CPU_ISA allow.
const char* active_isa();

// The instruction sets compiled into this binary, separated by commas.
const char* compiled_isas();

}  // namespace cfal
