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

// `count` elements as they are in memory, read as floats.
template <typename T, int count>
struct Packs {
  __device__ __forceinline__ float operator[](int i) const {
    return to_float(pack[i / Pack<T>::size].element[i % Pack<T>::size]);
  }
  Pack<T> pack[count / Pack<T>::size];
};

template <int count, typename T>
__device__ __forceinline__ Packs<T, count> load_packs(const T* first) {
  Packs<T, count> packs;
#pragma unroll
  for (int i = 0; i < count / Pack<T>::size; ++i) packs.pack[i] = load_pack(first + i * Pack<T>::size);
  return packs;
}

// Loads `count` elements from `first` on as floats.
template <int count, typename T>
__device__ __forceinline__ void load_floats(float (&values)[count], const T* first) {
  const Packs<T, count> packs = load_packs<count>(first);
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = packs[i];
}

template <int count>
__device__ __forceinline__ void store_floats(float* first, const float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += Pack<float>::size) {
    store_pack(first + i, Pack<float>{values[i], values[i + 1], values[i + 2], values[i + 3]});
  }
}

// Rounds values to T and stores them.
template <typename T, int count>
__device__ __forceinline__ void store_rounded(T* first, float (&values)[count]) {
#pragma unroll
  for (int start = 0; start < count; start += Pack<T>::size) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Pack<T>::size; ++i) {
      pack.element[i] = round_to<T>(values[start + i]);
      values[start + i] = to_float(pack.element[i]);
    }
    store_pack(first + start, pack);
  }
}

}  // namespace vitfast
