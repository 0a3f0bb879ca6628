// The softmax of rows of logits that lie in the registers of a warp, and what goes in and out with them: the bias, the
// logits themselves, the logarithms of the sums. Rows are whole, or come by in pieces.

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/matrix_step.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/reduce.cuh"

namespace vitfast {

// What a lane sees of one head in a fragment with 16 rows.
struct LaneRows {
  unsigned head;  // of all images: image * H + head
  int row[2];     // rows from a.tokens on are computed and not written
  int column;     // of every 8 columns it has two: this one and the next are the first
};

// Turns products q kᵀ into logits without their bias, in units of ln 2 so that their exponentials are powers of 2.
// Columns from a.tokens on, which are none in the first `full_tiles` tiles, become -inf.
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

// Adds the bias and writes the logits, whichever there is.
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

// Raises maxima of rows to those of their logits.
template <int key_tiles>
__device__ __forceinline__ void raise_maxima(const float (&logits)[key_tiles][4], float (&maxima)[2]) {
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) maxima[i / 2] = fmaxf(maxima[i / 2], logits[tile][i]);
  }
  maxima[0] = maximum_over<4>(maxima[0]);
  maxima[1] = maximum_over<4>(maxima[1]);
}

// What is taken from the logits of a row with this maximum: in a masked row every weight is zero.
__device__ __forceinline__ float shift_of(float maximum) {
  return maximum == -infinity ? 0.0f : maximum;
}

// The weights of one of a lane's two rows: exponentials rounded to T, in the layout of A's registers. Returns the sum
// of the lane's own, unrounded.
template <typename T, int key_tiles>
__device__ __forceinline__ float weigh_row(
    const float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][MatrixStep<T>::tile_registers],
    int half,
    float shift) {
  float sum = 0.0f;
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
    const float low = exp2_approximate(logits[tile][2 * half] - shift);
    const float high = exp2_approximate(logits[tile][2 * half + 1] - shift);
    sum += low + high;
    MatrixStep<T>::set_columns(weights[tile], half, low, high);
  }
  return sum;
}

// Closes a row whose lanes have these sums: returns the inverse of their sum, which is zero in a masked row, and lets
// the lane that is the `writer` write the lse.
__device__ __forceinline__ float close_row(
    const AttentionForward& a, unsigned head, int row, float shift, float sum, bool writer) {
  sum = sum_over<4>(sum);
  const bool masked = sum == 0.0f;
  if (writer && row < a.tokens) {
    static_cast<float*>(a.lse)[head * a.tokens + row] = masked ? 0.0f : (shift + log2_approximate(sum)) * ln_2;
  }
  return masked ? 0.0f : 1.0f / sum;
}

// The softmax of whole rows of logits, not yet divided by the sums: `weights`, and the inverse of the sums. Also writes
// the lse.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void softmax_rows(
    const AttentionForward& a,
    float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][MatrixStep<T>::tile_registers],
    float (&inverse_sums)[2],
    const LaneRows& at) {
  scale_logits<full_tiles>(a, logits, at);
  exchange_logits<T>(a, logits, at);
  float maxima[2] = {-infinity, -infinity};
  raise_maxima(logits, maxima);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float shift = shift_of(maxima[half]);
    const float sum = weigh_row<T>(logits, weights, half, shift);
    inverse_sums[half] = close_row(a, at.head, at.row[half], shift, sum, at.column == 0);
  }
}

// The softmax of two rows as far as their keys have come by (Milakov and Gimelshein, 2018).
struct RunningSoftmax {
  float maxima[2] = {-infinity, -infinity};
  float sums[2] = {};  // of the lane's own columns, of exponentials relative to the maxima
};

// Takes in the logits of further keys: their weights are relative to the new maxima, `factors` make what was relative
// to the old ones so.
template <typename T, int key_tiles>
__device__ __forceinline__ void continue_softmax(
    RunningSoftmax& rows,
    const float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][MatrixStep<T>::tile_registers],
    float (&factors)[2]) {
  const float before[2] = {rows.maxima[0], rows.maxima[1]};
  raise_maxima(logits, rows.maxima);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float shift = shift_of(rows.maxima[half]);
    factors[half] = exp2_approximate(before[half] - shift);
    rows.sums[half] = rows.sums[half] * factors[half] + weigh_row<T>(logits, weights, half, shift);
  }
}

}  // namespace vitfast
