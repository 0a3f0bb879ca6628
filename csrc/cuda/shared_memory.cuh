// Shared memory, handed out array by array.

#pragma once

#include <cstdint>

namespace vitfast {

constexpr int shared_alignment = 16;

// Bytes of shared memory that an array takes.
template <typename T>
__host__ __device__ constexpr int shared_bytes(int count) {
  return (count * int(sizeof(T)) + shared_alignment - 1) / shared_alignment * shared_alignment;
}

// Every thread takes the same arrays in the same order, and gets the same addresses. A launch asks for the sum of their
// shared_bytes.
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
