// Philox 4x32-10 counter-based random numbers for stochastic rounding (Salmon et al., 2011), for host and device.
// vitfast/ops/rounding.py implements the same in PyTorch.

#pragma once

#include "csrc/common/float_format.h"

namespace vitfast {

struct PhiloxWords {
  uint32_t word[4];
};

// Element i uses word (i / 16) % 4 of counter (i / 64) * 16 + i % 16: sixteen adjacent elements share a word index.
constexpr int64_t philox_lanes = 16;
constexpr int64_t philox_block = 64;

VITFAST_HOST_DEVICE PhiloxWords philox(uint64_t key, uint64_t counter) {
  uint32_t w0 = uint32_t(counter), w1 = uint32_t(counter >> 32), w2 = 0, w3 = 0;
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * w0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * w2;
    w0 = uint32_t(p1 >> 32) ^ w1 ^ k0;
    w1 = uint32_t(p1);
    w2 = uint32_t(p0 >> 32) ^ w3 ^ k1;
    w3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{w0, w1, w2, w3}};
}

}  // namespace vitfast
