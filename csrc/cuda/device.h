// The device functions that the kernels are written in: reads of any dtype, 16-byte accesses, sums
// over a warp in a fixed order. tests/cpp/emulated_cuda.h supplies the same vocabulary on the CPU,
// so that the kernels run, unchanged, on a machine without a GPU.
#pragma once

#include <cstdint>
#include <type_traits>

// The scalar formulas join this namespace, apart from those of the CPU's instruction sets.
#define CFAL_ISA cuda
#include "../core/formulas.h"
#include "../core/problem.h"

#if defined(CFAL_EMULATED_CUDA)
#include "tests/cpp/emulated_cuda.h"
#else
// The host compiler's NDEBUG must not take away the assertion on targets.
#undef NDEBUG
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>
#define CFAL_DEVICE __device__ __forceinline__
#define CFAL_DEVICE_CALL static __device__ __noinline__  // rare: keeps its registers to itself
#define CFAL_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define CFAL_PARAMETER const __grid_constant__
#define CFAL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define CFAL_STATIC_SHARED(type, name) __shared__ type name
#define CFAL_DEVICE_ASSERT(condition) assert(condition)
#define CFAL_WAIT() __nanosleep(64)
#endif

namespace cfal::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- elements of any dtype, converted to the compute type

template <class T>
CFAL_DEVICE T load_element(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::kFloat16:
      return static_cast<T>(__half2float(static_cast<const __half*>(data)[index]));
    case DType::kBFloat16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]));
    case DType::kFloat32:
      return static_cast<T>(static_cast<const float*>(data)[index]);
    default:
      return static_cast<T>(static_cast<const double*>(data)[index]);
  }
}

template <class T>
CFAL_DEVICE void store_element(void* data, DType type, int64_t index, T value) {
  switch (type) {
    case DType::kFloat16:
      static_cast<__half*>(data)[index] = __float2half(static_cast<float>(value));
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16(static_cast<float>(value));
      break;
    case DType::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      break;
    default:
      static_cast<double*>(data)[index] = static_cast<double>(value);
  }
}

CFAL_DEVICE int64_t prototype_index(const Problem& p, int64_t k, int64_t d) {
  return k / p.M * p.prototype_strides[0] + k % p.M * p.prototype_strides[1] +
         d * p.prototype_strides[2];
}

CFAL_DEVICE int64_t feature_index(const Problem& p, int64_t i, int64_t d) {
  return i * p.features.row_stride + d * p.features.col_stride;
}

// ---- 16 bytes at a time

// A value of 16 bytes seen as N elements of F.
template <class F, int N>
struct alignas(16) Packed {
  static_assert(sizeof(F) * N == 16);
  F element[N];
};

template <class F>
CFAL_DEVICE Packed<F, 16 / sizeof(F)> load_16_bytes(const F* address) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
  Packed<F, 16 / sizeof(F)> packed;
  memcpy(&packed, &bits, sizeof bits);
  return packed;
}

template <class F>
CFAL_DEVICE void store_16_bytes(F* address, const Packed<F, 16 / sizeof(F)>& packed) {
  uint4 bits;
  memcpy(&bits, &packed, sizeof bits);
  // By name: nvcc merges a plain store with the element-wise one of a row's tail, into four.
  __stcg(reinterpret_cast<uint4*>(address), bits);
}

CFAL_DEVICE float to_compute(__half value, float) { return __half2float(value); }
CFAL_DEVICE float to_compute(__nv_bfloat16 value, float) { return __bfloat162float(value); }
CFAL_DEVICE float to_compute(float value, float) { return value; }
CFAL_DEVICE double to_compute(double value, double) { return value; }

CFAL_DEVICE void from_compute(float value, __half& out) { out = __float2half(value); }
CFAL_DEVICE void from_compute(float value, __nv_bfloat16& out) { out = __float2bfloat16(value); }
CFAL_DEVICE void from_compute(float value, float& out) { out = value; }
CFAL_DEVICE void from_compute(double value, double& out) { out = value; }

// ---- sums over a warp

// The sum over the lanes, in every lane, in the order of a butterfly.
template <class T>
CFAL_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// One step of warp_sums, and the steps after it. Each halves the values that a lane holds.
template <int N, int offset, class T>
CFAL_DEVICE void warp_sums_step(T* value, int lane) {
  if constexpr (offset > 0) {
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const T sent = upper ? value[i] : value[i + N / 2];
      const T kept = upper ? value[i + N / 2] : value[i];
      value[i] = kept + __shfl_xor_sync(kAllLanes, sent, offset);
    }
    warp_sums_step<N / 2, offset / 2>(value, lane);
  }
}

// Sums of N values over the lanes: value[j] in lane l becomes the sum of what was value[l N / 32 +
// j], for j < N / 32. N - N / 32 shuffles in place of 5 N.
template <int N, class T>
CFAL_DEVICE void warp_sums(T* value, int lane) {
  static_assert(N % kWarp == 0);
  warp_sums_step<N, kWarp / 2>(value, lane);
}

}  // namespace cfal::cuda
