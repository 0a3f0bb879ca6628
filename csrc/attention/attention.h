// What the tensor functions ask of the attention kernels. Pointers are to the first element; strides are in elements.

#pragma once

#include "csrc/common/types.h"

namespace vitfast {

constexpr float log2_of_e = 1.4426950408889634f;
constexpr float ln_2 = 0.6931471805599453f;
constexpr float infinity = __builtin_huge_valf();

// A [B, H, N, D] view: the last dimension is contiguous.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

// What both directions know.
struct Attention {
  Type type;
  HeadsView q, k, v, out;
  const void* bias;           // [B or 1, H, N, N] or null
  int64_t bias_batch_stride;  // 0 for a bias of batch 1
  int64_t batch, heads, tokens, head_dim;
  double scale;
};

// Logits are scale q kᵀ + bias. A row whose logits are all -inf attends to nothing: its result is zero, and so is its
// lse.
struct AttentionForward : Attention {
  void* logits;        // [B, H, N, N] or null
  void* lse;           // [B, H, N]: log of the sum of the exponentials; double for float64, else float
  int64_t row_splits;  // on the CPU a task is a head and one of this many ranges of its rows
};

// ConViT's: of each head's softmax and of its probabilities by position, (1 - gate) softmax + gate position meets v. It
// has neither bias nor logits nor lse.
struct GatedPositionalAttention : AttentionForward {
  const void* position;  // [H, N, N], the last dimension is contiguous
  int64_t position_head_stride, position_row_stride;
  const void* gate;  // [H], double for float64, else float
};

struct AttentionBackward : Attention {
  HeadsView grad_out, grad_q, grad_k, grad_v;
  const void* grad_logits;         // [B, H, N, N] or null
  void* grad_bias;                 // like bias, or null
  int64_t grad_bias_batch_stride;  // on CUDA, where each image may write its own
  const void* lse;                 // [B, H, N]
};

}  // namespace vitfast
