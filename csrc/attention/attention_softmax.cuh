// The softmax over whole rows of logits that lie in the registers of a warp, and what goes in and out with them: the
// bias, the logits themselves, the logarithms of the sums.

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/reduce.cuh"

namespace vitfast {

// The rows of one head that a lane sees in a fragment with 16 rows.
struct LaneRows {
  unsigned head;  // of all images: image * H + head
  int row[2];     // rows from a.tokens on are computed and not written
  int pair;       // lane % 4: of every 8 columns it has 2 pair and the next
};

// Turns products q kᵀ into logits, in units of ln 2 so that their exponentials are powers of 2, and gives the maxima of
// the rows. Columns from a.tokens on, which are none in the first `full_tiles` tiles, become -inf.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void finish_logits(
    const AttentionForward& a, float (&logits)[key_tiles][4], float (&maxima)[2], const LaneRows& at) {
  const int tokens = int(a.tokens);
  const float scale = float(a.scale) * log2_of_e;
  maxima[0] = maxima[1] = -infinity;
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool hidden = tile >= full_tiles && tile * 8 + 2 * at.pair + i % 2 >= tokens;
      logits[tile][i] = hidden ? -infinity : logits[tile][i] * scale;
    }
  }
  if (a.bias != nullptr || a.logits != nullptr) {
    const unsigned image = at.head / unsigned(a.heads);
    const int64_t square = a.tokens * a.tokens;
    const T* bias = static_cast<const T*>(a.bias) + image * a.bias_batch_stride + (at.head - image * a.heads) * square;
    T* out = static_cast<T*>(a.logits) + at.head * square;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = at.row[i / 2], column = tile * 8 + 2 * at.pair + i % 2;
        if (row >= tokens || column >= tokens) continue;
        if (a.bias != nullptr) logits[tile][i] += to_float(bias[row * tokens + column]) * log2_of_e;
        if (a.logits != nullptr) out[row * tokens + column] = round_to<T>(logits[tile][i] * ln_2);
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) maxima[i / 2] = fmaxf(maxima[i / 2], logits[tile][i]);
  }
  maxima[0] = maximum_over<4>(maxima[0]);
  maxima[1] = maximum_over<4>(maxima[1]);
}

// The softmax of rows of logits, not yet divided by the sums: `weights` rounded to T, in the layout of A's registers (a
// tile is one half of the depth of a product), the inverse of the sums apart. Also writes the lse.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void softmax_rows(
    const AttentionForward& a,
    float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][2],
    float (&inverse_sums)[2],
    const LaneRows& at) {
  float maxima[2];
  finish_logits<T, full_tiles>(a, logits, maxima, at);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // in a masked row every weight is zero
    const float shift = maxima[half] == -infinity ? 0.0f : maxima[half];
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      const float low = exp2_approximate(logits[tile][2 * half] - shift);
      const float high = exp2_approximate(logits[tile][2 * half + 1] - shift);
      sum += low + high;
      weights[tile][half] = round_to_pair<T>(low, high);
    }
    sum = sum_over<4>(sum);
    const bool masked = sum == 0.0f;
    inverse_sums[half] = masked ? 0.0f : 1.0f / sum;
    if (at.pair == 0 && at.row[half] < a.tokens) {
      static_cast<float*>(a.lse)[at.head * a.tokens + at.row[half]] =
          masked ? 0.0f : (shift + log2_approximate(sum)) * ln_2;
    }
  }
}

}  // namespace vitfast
