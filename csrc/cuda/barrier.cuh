// Barriers: what the threads wrote to memory before is seen by all that have waited.

#pragma once

namespace vitfast {

// Waits for every thread of the block.
__device__ __forceinline__ void sync_threads() {
  __syncthreads();
}

// Waits for `threads` threads, a multiple of 32, that name the same barrier. Number 0 is that of sync_threads; 1 to 15
// are free. Whole warps take part.
__device__ __forceinline__ void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace vitfast
