// Allocation of arrays in dynamic shared memory.

#pragma once

#include <cstdint>

namespace vitfast {

constexpr int shared_alignment = 16;

// Size of an array in shared memory, with padding.
template <typename T>
__host__ __device__ constexpr int shared_bytes(int count) {
  return (count * int(sizeof(T)) + shared_alignment - 1) / shared_alignment * shared_alignment;
}

// All threads must take the same arrays in the same order and receive the same addresses. The launch must request the
// sum of their shared_bytes.
class SharedMemory {
 public:
  template <typename T>
  __device__ __forceinline__ T* take(int count) {
    extern __shared__ __align__(shared_alignment) unsigned char bytes[];
    T* array = reinterpret_cast<T*>(bytes + used_);
    used_ += shared_bytes<T>(count);
    return array;
  }

 private:
  int used_ = 0;
};

}  // namespace vitfast
