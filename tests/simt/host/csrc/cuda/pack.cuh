#pragma once

#include <cstdint>
#include <cstring>

#include "tests/simt/runtime/simt.h"

namespace vitfast {

template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T element[size];
};

inline bool is_pack_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

template <typename T>
inline Pack<T> load_pack(const T* address, simt::Site site = simt::Site::here()) {
  if (!is_pack_aligned(address)) simt::fail(site, "a load of 16 bytes from an address that is no multiple of 16");
  simt::note_read(address, 16);
  Pack<T> pack;
  std::memcpy(&pack, address, sizeof(pack));
  return pack;
}

template <typename T>
inline void store_pack(T* address, const Pack<T>& pack, simt::Site site = simt::Site::here()) {
  if (!is_pack_aligned(address)) simt::fail(site, "a store of 16 bytes to an address that is no multiple of 16");
  simt::note_write(address, 16);
  std::memcpy(address, &pack, sizeof(pack));
}

}  // namespace vitfast
