// GELU of one number on the device, as exactly as the type that keeps the result shows it.

#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/common/gelu.h"
#include "csrc/common/types.h"
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// By erf, for a result kept in T. NaN stays NaN.
template <typename T>
__device__ __forceinline__ float gelu_erf(float x) {
  constexpr bool is_narrow = std::is_same_v<T, BFloat16>;
  constexpr float limit = is_narrow ? gelu_limit_narrow : gelu_limit_full;
  const float magnitude = fabsf(x);
  const float t = magnitude > limit ? limit : magnitude;
  const float exponent = is_narrow ? log2_normal_tail_narrow(t) : log2_normal_tail_full(t);
  return fmaxf(x, 0.0f) - t * exp2_approximate(exponent);
}

// By tanh: x times the logistic function of 2 √(2/π) (x + 0.044715 x³). NaN stays NaN.
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float minus_2_log2_e_sqrt_2_over_pi = -2.30220820f;
  const float y = x < -100.0f ? -100.0f : x;  // there it is zero; an infinite x would make it NaN
  const float exponent = (y + 0.044715f * (y * y * y)) * minus_2_log2_e_sqrt_2_over_pi;
  return y * reciprocal_approximate(1.0f + exp2_approximate(exponent));
}

}  // namespace vitfast
