// Barriers, and exchange of registers within a warp.

#pragma once

namespace vitfast {

constexpr int warp_size = 32;

// Block-wide barrier; memory writes before it are visible to all threads after it.
__device__ __forceinline__ void sync_threads() {
  __syncthreads();
}

// Warp-wide barrier with the same memory ordering. Register exchanges (shuffles, mma) do not order memory.
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}

// The value of the lane whose index differs in the bits of `mask`. All lanes of the warp must participate.
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Number of lanes with a true vote: those below this lane, and all. All lanes of the warp must participate.
struct Votes {
  int below, all;
};

__device__ __forceinline__ Votes count_votes(bool vote) {
  const unsigned lanes = __ballot_sync(0xffffffffu, vote), lane = threadIdx.x % warp_size;
  return {__popc(lanes & ((1u << lane) - 1)), __popc(lanes)};
}

}  // namespace vitfast
