// Functions of csrc/core that kernels of every device call.
#pragma once

#if defined(__CUDACC__)
#define CFAL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CFAL_HOST_DEVICE inline
#endif
