// Asynchronous copies from global to shared memory (cp.async). A thread gathers copies into groups and waits for
// groups. Its own wait makes only its own copies visible to it: others need a barrier behind the wait.

#pragma once

#include <cstdint>

namespace vitfast {

// Copies 16 bytes, both addresses multiples of 16; or, where not `inside`, writes 16 zero bytes and reads nothing.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int source_bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes)
               : "memory");
}

// Closes the thread's current group, which may be empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the `pending` newest groups of this thread are still under way.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace vitfast
