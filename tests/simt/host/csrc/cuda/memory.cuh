#pragma once

#include <cstring>

#include "tests/simt/runtime/simt.h"

namespace vitfast {

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

inline void copy_async(void* shared, const void* global, bool inside, simt::Site site = simt::Site::here()) {
  simt::copy_async(shared, global, inside, site);
}

inline void commit_copies() {
  simt::commit_copies();
}

template <int pending>
inline void wait_for_copies() {
  simt::wait_for_copies(pending);
}

}  // namespace vitfast
