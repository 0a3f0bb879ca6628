#pragma once

#include "tests/simt/runtime/simt.h"

namespace vitfast {

constexpr int warp_size = simt::warp_size;

inline void sync_threads(simt::Site site = simt::Site::here()) {
  simt::sync_threads(site);
}

inline void sync_warp(simt::Site site = simt::Site::here()) {
  simt::sync_warp(site);
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

struct Votes {
  int below, all;
};

inline Votes count_votes(bool vote, simt::Site site = simt::Site::here()) {
  struct Slot {
    bool vote;
    Votes votes;
  } slot{vote, {}};
  simt::with_warp(
      [](void* const* slots) {
        int votes = 0;
        for (int lane = 0; lane < warp_size; ++lane) {
          Slot& mine = *static_cast<Slot*>(slots[lane]);
          mine.votes.below = votes;
          votes += int(mine.vote);
        }
        for (int lane = 0; lane < warp_size; ++lane) static_cast<Slot*>(slots[lane])->votes.all = votes;
      },
      &slot,
      site);
  return slot.votes;
}

}  // namespace vitfast
