// Softmax of rows of logits in the registers of a warp, with the related loads and stores: bias, logits, logsumexp.

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// A lane's coordinates in a fragment with 16 rows.
struct LaneRows {
  unsigned head;  // image * H + index of the head
  int row[2];     // rows past a.tokens are computed but not written
  int column;     // first of the two adjacent columns that it has in every 8
};

// Scales q kᵀ to logits in units of ln 2, for exp2. Columns past a.tokens become -inf; the first `full_tiles` tiles
// have none.
template <int full_tiles, int key_tiles>
__device__ __forceinline__ void scale_logits(const Attention& a, float (&logits)[key_tiles][4], const LaneRows& at) {
  const int tokens = int(a.tokens);
  const float scale = float(a.scale) * log2_of_e;
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool hidden = tile >= full_tiles && at.column + tile * 8 + i % 2 >= tokens;
      logits[tile][i] = hidden ? -infinity : logits[tile][i] * scale;
    }
  }
}

// Adds the bias and writes the logits, if present.
template <typename T, int key_tiles>
__device__ __forceinline__ void exchange_logits(
    const AttentionForward& a, float (&logits)[key_tiles][4], const LaneRows& at) {
  if (a.bias == nullptr && a.logits == nullptr) return;
  const int tokens = int(a.tokens);
  const unsigned image = at.head / unsigned(a.heads);
  const int64_t square = a.tokens * a.tokens;
  const T* bias = static_cast<const T*>(a.bias) + image * a.bias_batch_stride + (at.head - image * a.heads) * square;
  T* out = static_cast<T*>(a.logits) + at.head * square;
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = at.row[i / 2], column = at.column + tile * 8 + i % 2;
      if (row >= tokens || column >= tokens) continue;
      if (a.bias != nullptr) logits[tile][i] += to_float(bias[row * tokens + column]) * log2_of_e;
      if (a.logits != nullptr) out[row * tokens + column] = round_to<T>(logits[tile][i] * ln_2);
    }
  }
}

// The number subtracted from the logits of a row; zero for a fully masked row, whose weights are then zero.
__device__ __forceinline__ float shift_of(float maximum) {
  return maximum == -infinity ? 0.0f : maximum;
}

// Reduces a row's sum over its lanes; the `writer` lane stores the lse. Returns the inverse sum, or zero for a masked
// row.
__device__ __forceinline__ float close_row(
    const AttentionForward& a, unsigned head, int row, float shift, float sum, bool writer) {
  sum = sum_over<4>(sum);
  const bool masked = sum == 0.0f;
  if (writer && row < a.tokens) {
    static_cast<float*>(a.lse)[head * a.tokens + row] = masked ? 0.0f : (shift + log2_approximate(sum)) * ln_2;
  }
  return masked ? 0.0f : 1.0f / sum;
}

// Softmax of whole rows: unnormalized `weights`, exponentials rounded to T, as A fragments, and the inverse sums of the
// unrounded ones. Also writes the lse.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void softmax_rows(
    const AttentionForward& a,
    float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][2],
    float (&inverse_sums)[2],
    const LaneRows& at) {
  scale_logits<full_tiles>(a, logits, at);
  exchange_logits<T>(a, logits, at);
  float maxima[2] = {-infinity, -infinity};
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) maxima[i / 2] = fmaxf(maxima[i / 2], logits[tile][i]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float shift = shift_of(maximum_over<4>(maxima[half]));
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      const float low = exp2_approximate(logits[tile][2 * half] - shift);
      const float high = exp2_approximate(logits[tile][2 * half + 1] - shift);
      sum += low + high;
      weights[tile][half] = round_to_pair<T>(low, high);
    }
    inverse_sums[half] = close_row(a, at.head, at.row[half], shift, sum, at.column == 0);
  }
}

}  // namespace vitfast
