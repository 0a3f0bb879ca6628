// Alignment of addresses.

#pragma once

#include <cstdint>

namespace vitfast {

inline bool is_pack_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace vitfast
