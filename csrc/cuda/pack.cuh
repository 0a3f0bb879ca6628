// A pack: 16 bytes of elements, the widest memory access of one thread. Conversions of packs to and from floats.

#pragma once

#include <cstdint>

namespace vitfast {

template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T element[size];
};

}  // namespace vitfast

#include "csrc/common/alignment.h"
#include "csrc/cuda/memory.cuh"  // load_pack, store_pack, copy_async
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// Loads `count` elements from `first` on as floats.
template <int count, typename T>
__device__ __forceinline__ void load_floats(float (&values)[count], const T* first) {
#pragma unroll
  for (int start = 0; start < count; start += Pack<T>::size) {
    const Pack<T> pack = load_pack(first + start);
#pragma unroll
    for (int i = 0; i < Pack<T>::size; ++i) values[start + i] = to_float(pack.element[i]);
  }
}

template <int count>
__device__ __forceinline__ void store_floats(float* first, const float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += Pack<float>::size) {
    store_pack(first + i, Pack<float>{values[i], values[i + 1], values[i + 2], values[i + 3]});
  }
}

template <typename T>
__device__ __forceinline__ Pack<T> round_to_pack(const float (&values)[Pack<T>::size]) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) pack.element[i] = round_to<T>(values[i]);
  return pack;
}

}  // namespace vitfast
