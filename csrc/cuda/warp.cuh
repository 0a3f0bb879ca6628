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

// How many lanes say yes: those below this one, and all. The whole warp takes part.
struct Votes {
  int below, all;
};

__device__ __forceinline__ Votes count_votes(bool yes) {
  const unsigned lanes = __ballot_sync(0xffffffffu, yes);
  return {__popc(lanes & ((1u << lane_in_warp()) - 1)), __popc(lanes)};
}

// Waits for the whole warp; what its threads wrote to memory before is seen by all of them after. Exchanges of
// registers (shuffles, matrix products) order no memory.
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}

}  // namespace vitfast
