// Arithmetic on registers: bit patterns, conversions, pairs of 16-bit numbers, correctly rounded and approximate
// functions.

#pragma once

#include <cstdint>
#include <type_traits>

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

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T round_to(float value) {
  if constexpr (std::is_same_v<T, Half>) {
    return {__half_as_ushort(__float2half_rn(value))};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  } else {
    return value;
  }
}

// Two 16-bit numbers in one register: `low` in bits 0-15, the lower address in memory.
template <typename T>
__device__ __forceinline__ uint32_t round_to_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// Stores pair number `pair` from `x` on, aligned to the size of a pair. The index counts pairs, not elements: with
// element indices the gated positional attention kernel spills registers on sm_80 (nvcc 13.0).
template <typename T>
__device__ __forceinline__ void store_pair(T* x, int pair, float first, float second) {
  reinterpret_cast<uint32_t*>(x)[pair] = round_to_pair<T>(first, second);
}
template <>
__device__ __forceinline__ void store_pair<float>(float* x, int pair, float first, float second) {
  reinterpret_cast<float2*>(x)[pair] = {first, second};
}

// a + b without contraction into a fused multiply-add by nvcc.
__device__ __forceinline__ float rounded_sum(float a, float b) {
  return __fadd_rn(a, b);
}

// a * b + c with one rounding.
__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

// 2^x with an error of at most 2 ulp; 2^-inf is 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x) with an error of at most 2^-22: absolute in [0.5, 2], relative elsewhere; log2(0) is -inf.
__device__ __forceinline__ float log2_approximate(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x with an error of at most 1 ulp; subnormal x counts as zero.
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Returns `value` and hides it from the optimizer: expressions of it are recomputed here rather than hoisted out of a
// loop and kept in registers.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace vitfast
