#pragma once

#include "tests/simt/runtime/simt.h"

namespace vitfast {

constexpr int warp_size = simt::warp_size;

inline int lane_in_warp() {
  return int(simt::thread_index().x) % warp_size;
}

inline int warp_in_block() {
  return int(simt::thread_index().x) / warp_size;
}

inline float shuffle_xor(float value, int mask, simt::Site site = simt::Site::here()) {
  struct Slot {
    float value, result;
    int mask;
  } slot{value, 0.0f, mask};
  simt::with_warp(
      [](void* const* slots) {
        for (int lane = 0; lane < warp_size; ++lane) {
          Slot& mine = *static_cast<Slot*>(slots[lane]);
          mine.result = static_cast<const Slot*>(slots[(lane ^ mine.mask) % warp_size])->value;
        }
      },
      &slot,
      site);
  return slot.result;
}

inline void sync_warp(simt::Site site = simt::Site::here()) {
  simt::sync_warp(site);
}

}  // namespace vitfast
