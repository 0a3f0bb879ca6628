// A pack: 16 bytes of elements, the widest memory access of one thread.

#pragma once

#include <cstdint>

namespace vitfast {

template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T element[size];
};

inline bool is_pack_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace vitfast

#include "csrc/cuda/memory.cuh"  // load_pack, store_pack, copy_async
