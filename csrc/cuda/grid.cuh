// The place of a thread in a one-dimensional grid, in 64 bits.

#pragma once

#include <cstdint>

namespace vitfast {

__device__ __forceinline__ int64_t thread_in_grid() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t threads_in_grid() {
  return int64_t(gridDim.x) * blockDim.x;
}

}  // namespace vitfast
