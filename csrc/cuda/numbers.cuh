// Numbers in registers: their bits, conversions, pairs of 16-bit numbers, base-2 exponential and logarithm.

#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "csrc/common/types.h"

namespace vitfast {

__device__ __forceinline__ uint32_t bits_of(float value) {
  return __float_as_uint(value);
}
__device__ __forceinline__ uint64_t bits_of(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}
__device__ __forceinline__ float from_bits(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ __forceinline__ double from_bits(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(Half value) {
  return __half2float(__ushort_as_half(value.bits));
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(uint32_t(value.bits) << 16);
}

// To the nearest number of the type, ties to even.
template <typename T>
__device__ __forceinline__ T round_to(float value);
template <>
__device__ __forceinline__ float round_to<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Half round_to<Half>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}
template <>
__device__ __forceinline__ BFloat16 round_to<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// Two numbers of 16 bits in a register: `low` in bits 0-15, which is the one with the lower address.
template <typename T>
__device__ __forceinline__ uint32_t round_to_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t round_to_pair<Half>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ uint32_t round_to_pair<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two neighbours in memory, aligned to both: pair number `pair` from `x` on. Counted in elements instead, their
// addresses cost ConViT's attention spills on sm_80 (nvcc 13.0).
template <typename T>
__device__ __forceinline__ void store_pair(T* x, int pair, float first, float second) {
  reinterpret_cast<uint32_t*>(x)[pair] = round_to_pair<T>(first, second);
}
template <>
__device__ __forceinline__ void store_pair<float>(float* x, int pair, float first, float second) {
  reinterpret_cast<float2*>(x)[pair] = {first, second};
}

// 2^x to within 2 units in the last place; -inf gives 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x) with an error of at most 2^-22, absolute between 0.5 and 2, else relative; 0 gives -inf.
__device__ __forceinline__ float log2_approximate(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to within 1 unit in the last place; denormal numbers count as zero.
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same number, of which the compiler knows nothing: what is computed from it is computed here, and not kept in
// registers from before a loop.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace vitfast
