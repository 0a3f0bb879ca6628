// GELU and its derivative on the device, accurate to the precision of the output type.

#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/common/gelu.h"
#include "csrc/common/types.h"
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// |x|, clamped to where GELU(-|x|) and its derivative are negligible in T. Propagates NaN.
template <typename T>
__device__ __forceinline__ float gelu_argument(float x) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>);
  constexpr float limit = std::is_same_v<T, BFloat16> ? gelu_limit_narrow : gelu_limit_half;
  const float magnitude = fabsf(x);
  return magnitude > limit ? limit : magnitude;
}

// Exact (erf) GELU for an output of type T. Propagates NaN.
template <typename T>
__device__ __forceinline__ float gelu_erf(float x) {
  constexpr bool is_narrow = std::is_same_v<T, BFloat16>;
  const float t = gelu_argument<T>(x);
  const float exponent = is_narrow ? log2_normal_tail_narrow(t) : log2_normal_tail_half(t);
  return fmaxf(x, 0.0f) - t * exp2_approximate(exponent);
}

// Tanh approximation: x sigmoid(2 √(2/π) (x + 0.044715 x³)). Propagates NaN.
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float minus_2_log2_e_sqrt_2_over_pi = -2.30220820f;
  const float y = x < -100.0f ? -100.0f : x;  // the result is zero below; -inf would give NaN
  const float exponent = (y + 0.044715f * (y * y * y)) * minus_2_log2_e_sqrt_2_over_pi;
  return y * reciprocal_approximate(1.0f + exp2_approximate(exponent));
}

// Derivative of exact GELU, for an output of type T.
template <typename T>
__device__ __forceinline__ float gelu_erf_derivative(float x) {
  constexpr bool is_narrow = std::is_same_v<T, BFloat16>;
  const float t = gelu_argument<T>(x);
  const float exponent = is_narrow ? gelu_slope_exponent_narrow(t) : gelu_slope_exponent_half(t);
  const float below_zero = exp2_approximate(exponent) * (is_narrow ? gelu_slope_narrow(t) : gelu_slope_half(t));
  return x < 0.0f ? below_zero : 1.0f - below_zero;
}

// Derivative of the tanh approximation: with g = sigmoid(2z), g + x g (1 - g) 2z'.
__device__ __forceinline__ float gelu_tanh_derivative(float x) {
  constexpr float minus_2_log2_e_sqrt_2_over_pi = -2.30220820f;
  constexpr float two_sqrt_2_over_pi = 1.59576912f;
  constexpr float limit = 20.0f;  // the result is 0 or 1 beyond; powers of an infinite x would give NaN
  const float y = x < -limit ? -limit : x > limit ? limit : x;
  const float square = y * y;
  const float exponent = (y + 0.044715f * (y * square)) * minus_2_log2_e_sqrt_2_over_pi;
  const float gate = reciprocal_approximate(1.0f + exp2_approximate(exponent));
  const float slope = two_sqrt_2_over_pi + (3.0f * 0.044715f * two_sqrt_2_over_pi) * square;
  return gate + y * gate * (1.0f - gate) * slope;
}

}  // namespace vitfast
