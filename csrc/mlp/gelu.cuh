// GELU on the device.

#pragma once

#include <cmath>

#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// x Φ(x), the exact form by erf: an exponential, a reciprocal and the polynomial of csrc/mlp/gelu_cpu_kernel.h, with a
// relative error of about 1e-6 in the lower tail, too.
__device__ __forceinline__ float gelu_erf(float x) {
  constexpr float minus_half_log2_of_e = -0.72134752f;
  constexpr float end = 9.5f;  // Φ(-9.5) is 1e-21
  const float magnitude = fminf(fabsf(x), end);
  const float u = reciprocal_approximate(1.0f + 0.268700577f * magnitude);
  float p = 0.0294371452f * u - 0.130905092f;
  p = p * u + 0.181419387f;
  p = p * u - 0.0801117495f;
  p = p * u + 0.1145593f;
  p = p * u + 0.0695311576f;
  p = p * u + 0.101896688f;
  p = p * u + 0.106968224f;
  p = p * u + 0.107204936f;
  const float exponential = exp2_approximate(minus_half_log2_of_e * (x * x));
  const float tail = magnitude < end ? exponential * (p * u) : 0.0f;  // Φ(-|x|)
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace vitfast
