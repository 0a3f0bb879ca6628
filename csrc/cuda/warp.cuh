// A warp: 32 threads that exchange registers. Blocks are one-dimensional, of whole warps.

#pragma once

#include <cstdint>

namespace vitfast {

constexpr int warp_size = 32;

__device__ __forceinline__ int lane_in_warp() {
  return int(threadIdx.x) % warp_size;
}

__device__ __forceinline__ int warp_in_block() {
  return int(threadIdx.x) / warp_size;
}

// The value of the lane whose number differs in the bits of `mask`. The whole warp takes part.
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Waits for the whole warp; what its threads wrote to memory before is seen by all of them after. Exchanges of
// registers (shuffles, matrix products) order no memory.
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}

}  // namespace vitfast
