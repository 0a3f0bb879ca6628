// Arguments and limits of the attention kernels. Strides are in elements.

#pragma once

#include <cstdint>

#include "csrc/common/types.h"

namespace vitfast {

constexpr float log2_of_e = 1.4426950408889634f;
constexpr float ln_2 = 0.6931471805599453f;
constexpr float infinity = __builtin_huge_valf();

// Limits of the kernels, read by the Python operators from vitfast._C.
constexpr int attention_max_head_dim = 128;
constexpr int attention_head_dim_multiple = 8;
// Those of the CUDA kernels, which keep whole heads in shared memory: ViTs with 14 x 14 patches.
constexpr int attention_cuda_max_tokens = 200;
constexpr int attention_cuda_max_head_dim = 64;
// Shared memory that every GPU from compute capability 8.0 on offers a block: 8.6, 8.9 and 12.0 offer no more. All
// attention kernels fit, except the largest instance of the backward, for more than `attention_backward_small_tokens`.
constexpr int attention_shared_bytes_everywhere = 99 * 1024;
constexpr int attention_backward_small_tokens = 112;
constexpr int attention_backward_largest_bytes = 119 * 1024;

// A [B, H, N, D] view; the last dimension is contiguous.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

// Arguments common to forward and backward.
struct Attention {
  Type type;
  HeadsView q, k, v, out;
  const void* bias;           // [B or 1, H, N, N] or null
  int64_t bias_batch_stride;  // 0 for a bias of batch 1
  int64_t batch, heads, tokens, head_dim;
  double scale;
};

// Logits are scale q kᵀ + bias. A row whose logits are all -inf is fully masked: its output and lse are zero.
struct AttentionForward : Attention {
  void* logits;        // [B, H, N, N] or null
  void* lse;           // [B, H, N]: logsumexp of the logits; double for float64, otherwise float
  int64_t row_splits;  // CPU: number of row ranges per head; a task is one range
};

// Gated positional attention (ConViT): the weights of v are (1 - gate) softmax + gate position. No bias, logits or lse.
struct GatedPositionalAttention : AttentionForward {
  const void* position;  // [H, N, N], the last dimension is contiguous
  int64_t position_head_stride, position_row_stride;
  const void* gate;  // [H], double for float64, otherwise float
};

struct AttentionBackward : Attention {
  HeadsView grad_out, grad_q, grad_k, grad_v;
  const void* grad_logits;  // [B, H, N, N] or null
  void* grad_bias;          // like bias, or null; on CUDA [B, H, N, N]
  const void* lse;          // [B, H, N]
};

}  // namespace vitfast
