// Thread indices in blocks of whole warps and one-dimensional grids; reductions over the lanes of a warp.

#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/cuda/warp.cuh"

namespace vitfast {

__device__ __forceinline__ int lane_in_warp() {
  return int(threadIdx.x) % warp_size;
}

__device__ __forceinline__ int warp_in_block() {
  return int(threadIdx.x) / warp_size;
}

__device__ __forceinline__ int64_t thread_in_grid() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t threads_in_grid() {
  return int64_t(gridDim.x) * blockDim.x;
}

// Reductions over groups of `lanes` neighbors, a power of two: 4 for a row of a matrix fragment, 32 for the warp. Every
// lane gets the same result.
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
