// Gated positional self-attention of ConViT (d'Ascoli et al., 2021, eq. 7): the attention forward kernel with a softmax
// that blends in the positional probabilities while both are in registers.

#pragma once

#include "csrc/attention/attention_forward_launch.cuh"

namespace vitfast {

// The head within its image, recomputed at each use: keeping it in a register costs a spill.
__device__ __forceinline__ unsigned head_in_image(const GatedPositionalAttention& a, const LaneRows& at) {
  return unsigned(opaque(int(at.head))) % unsigned(a.heads);
}

// Loads the positional probabilities of one of a lane's two rows, in pairs, in the layout of its weights; zero past the
// last token. Rows are 4-byte aligned; rows past the last token repeat its row.
template <typename T, int full_tiles, int key_tiles>
__device__ __forceinline__ void load_positions(
    const GatedPositionalAttention& a, uint32_t (&pairs)[key_tiles][2], int half, const LaneRows& at) {
  const int tokens = int(a.tokens), row = at.row[half] < tokens ? at.row[half] : tokens - 1;
  // address of the lane's first column; the others are at constant offsets
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

// Computes weights of whole rows that are not yet divided by the sum of their exponentials e:
//
//     (1 - gate) e / sum + gate position = ((1 - gate) e + gate sum position) / sum
//
// A gate of zero gives bit-identical results to plain attention, and small weights keep their precision in float16.
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
  for (int half = 0; half < 2; ++half) {  // one row at a time, to limit register pressure
    float maximum = -infinity;
#pragma unroll
    for (int tile = 0; tile < key_tiles; ++tile) {
      maximum = fmaxf(maximum, fmaxf(logits[tile][2 * half], logits[tile][2 * half + 1]));
    }
    maximum = maximum_over<4>(maximum);
    sync_warp();  // prevents the compiler from hoisting the loads, which would spill
    // in flight while the exponentials are computed; the weights' registers receive them
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

// ConViT has 14 x 14 patches and head dimension 48, its "plus" models 64. T: Half or BFloat16.
template <typename T>
void launch_gated_positional_attention(const GatedPositionalAttention& a, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  with_range<0, 48, attention_cuda_max_head_dim>(a.head_dim, [&](auto, auto head_dim) {
    launch_attention_forward_instance<T, head_dim, 19, attention_cuda_max_tokens / 8>(a, stream);
  });
}

}  // namespace vitfast
