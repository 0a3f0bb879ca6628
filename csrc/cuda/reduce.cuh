// Sums and maxima over lanes. Every lane gets the result, and the same one.

#pragma once

#include <cmath>

#include "csrc/cuda/warp.cuh"

namespace vitfast {

// Over `lanes` neighbours, a power of two: 4 for a row of a matrix fragment, 32 for the warp.
template <int lanes>
__device__ __forceinline__ float maximum_over(float value) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

template <int lanes>
__device__ __forceinline__ float sum_over(float value) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace vitfast
