// 16-byte loads and stores (global or shared memory), and asynchronous copies from global to shared memory (cp.async).
// Addresses must be multiples of 16. Included by pack.cuh.

#pragma once

#include <cstdint>

namespace vitfast {

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T>*>(address);
}

template <typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(address) = pack;
}

// Copies 16 bytes, or writes 16 zero bytes without reading if `inside` is false. A thread's wait makes only its own
// copies visible to it; other threads also need a barrier after the wait.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int source_bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes)
               : "memory");
}

// Closes this thread's current copy group, which may be empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the `pending` most recent groups of this thread are incomplete.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace vitfast
