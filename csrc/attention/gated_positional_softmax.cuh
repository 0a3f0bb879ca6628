// The rows of ConViT's attention (d'Ascoli et al., 2021, eq. 7): the softmax of the content is blended with the
// probabilities by position while both lie in registers.

#pragma once

#include "csrc/attention/attention_softmax.cuh"
#include "csrc/cuda/barrier.cuh"

namespace vitfast {

// The head within its image, computed where it is asked for: kept from one place to the next it would cost a spill.
__device__ __forceinline__ unsigned head_in_image(const GatedPositionalAttention& a, const LaneRows& at) {
  return unsigned(opaque(int(at.head))) % unsigned(a.heads);
}

// The probabilities by position of one of a lane's two rows, in pairs, at the places of its weights; zero behind the
// last token. Rows begin at multiples of 4 bytes; those behind the last token take its own.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void load_positions(
    const GatedPositionalAttention& a, uint32_t (&pairs)[key_tiles][2], int half, const LaneRows& at) {
  const int tokens = int(a.tokens), row = at.row[half] < tokens ? at.row[half] : tokens - 1;
  // to the lane's first column: the others are constants away, so that one address serves all
  const T* places = static_cast<const T*>(a.position) + head_in_image(a, at) * a.position_head_stride +
                    row * a.position_row_stride + at.column;
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
    const int left = tokens - (at.column + tile * 8);
    pairs[tile][half] = 0;
    if (tile < full_tiles || left > 1) {
      pairs[tile][half] = *reinterpret_cast<const uint32_t*>(places + tile * 8);
    } else if (left == 1) {
      pairs[tile][half] = places[tile * 8].bits;
    }
  }
}

// The weights of whole rows, still to be divided by the sum of their exponentials e:
//
//     (1 - gate) e / sum + gate position = ((1 - gate) e + gate sum position) / sum
//
// so that a gate of zero gives the bits of plain attention, and float16 keeps those of small weights.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void softmax_rows(
    const GatedPositionalAttention& a,
    float (&logits)[key_tiles][4],
    uint32_t (&weights)[key_tiles][2],
    float (&inverse_sums)[2],
    const LaneRows& at) {
  scale_logits<full_tiles>(a, logits, at);
  const float gate = static_cast<const float*>(a.gate)[head_in_image(a, at)];
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // one row after the other: registers are short
    float maximum = -infinity;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      maximum = fmaxf(maximum, fmaxf(logits[tile][2 * half], logits[tile][2 * half + 1]));
    }
    maximum = maximum_over<4>(maximum);
    sync_warp();  // keeps the compiler from moving the loads up, where there are no registers for them
    // under way while the exponentials are computed, on their way to the registers of the weights
    load_positions<T, full_tiles>(a, weights, half, at);
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      float &low = logits[tile][2 * half], &high = logits[tile][2 * half + 1];
      low = exp2_approximate(low - maximum);
      high = exp2_approximate(high - maximum);
      sum += low + high;
    }
    sum = sum_over<4>(sum);
    inverse_sums[half] = 1.0f / sum;
    const float content = 1.0f - gate, positional = gate * sum;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      const uint32_t pair = weights[tile][half];
      const float low = content * logits[tile][2 * half] + positional * to_float(T{uint16_t(pair)});
      const float high = content * logits[tile][2 * half + 1] + positional * to_float(T{uint16_t(pair >> 16)});
      weights[tile][half] = round_to_pair<T>(low, high);
    }
  }
}

}  // namespace vitfast
