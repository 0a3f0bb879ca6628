// From the arguments of attention's backward to the instance of its kernel.

#pragma once

#include <stdexcept>

#include "csrc/attention/attention_backward_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// The most tokens that registers and shared memory have room for; vitfast/ops/attention.py asks before.
constexpr int attention_backward_max_tokens(int64_t head_dim) {
  return head_dim <= 64 ? 256 : 112;
}

template <typename T, int head_dim, int warps>
void launch_attention_backward_instance(const AttentionBackward& a, Stream stream) {
  if constexpr (16 * warps <= (attention_backward_max_tokens(head_dim) + 15) / 16 * 16) {
    // registers are handed out to four warps at a time: 128 a thread where blocks of 7, 13 or 16 warps share them
    constexpr bool has_registers = head_dim <= 64 && (warps == 4 || warps == 10);
    using Shape = AttentionBackwardShape<T, head_dim, warps, has_registers ? 4 : 2>;
    static_assert(Shape::bytes <= 160 * 1024);
    launch(attention_backward_kernel<T, Shape>, a.batch * a.heads, Shape::threads, Shape::bytes, stream, a);
  }
}

template <typename T, int head_dim>
void launch_attention_backward_head_dim(const AttentionBackward& a, Stream stream) {
  if (a.tokens <= 16 * 4) return launch_attention_backward_instance<T, head_dim, 4>(a, stream);
  if (a.tokens <= 16 * 7) return launch_attention_backward_instance<T, head_dim, 7>(a, stream);
  if (a.tokens <= 16 * 10) return launch_attention_backward_instance<T, head_dim, 10>(a, stream);
  if (a.tokens <= 16 * 13) return launch_attention_backward_instance<T, head_dim, 13>(a, stream);
  return launch_attention_backward_instance<T, head_dim, 16>(a, stream);
}

// True where one gradient is asked for a bias that all images share: `bias_scratch` of the launch holds each image's.
inline bool sums_bias_over_images(const AttentionBackward& a) {
  return a.grad_bias != nullptr && a.bias_batch_stride == 0 && a.batch > 1;
}

// T: Half or BFloat16; a head dimension of at most 128, a multiple of 8; rows that start at multiples of 16 bytes.
// bias_scratch: [B, H, N, N] where sums_bias_over_images says so.
template <typename T>
void launch_attention_backward(AttentionBackward a, void* bias_scratch, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  if (a.head_dim > 128 || a.head_dim % 8 != 0 || a.tokens > attention_backward_max_tokens(a.head_dim)) {
    throw std::runtime_error("attention: the CUDA backward takes no such head dimension, or fewer tokens");
  }
  if (a.batch * a.heads > INT32_MAX) throw std::runtime_error("attention: the CUDA kernel takes up to 2^31 - 1 heads");
  const bool sums = sums_bias_over_images(a);
  const int64_t count = a.heads * a.tokens * a.tokens;
  void* grad_bias = a.grad_bias;
  if (sums) a.grad_bias = bias_scratch;
  a.grad_bias_batch_stride = count;
  if (a.head_dim <= 32) {
    launch_attention_backward_head_dim<T, 32>(a, stream);
  } else if (a.head_dim <= 64) {
    launch_attention_backward_head_dim<T, 64>(a, stream);
  } else {
    launch_attention_backward_head_dim<T, 128>(a, stream);
  }
  if (!sums) return;
  launch(
      sum_images_kernel<T>,
      blocks_for(count, sum_images_threads),
      sum_images_threads,
      0,
      stream,
      static_cast<const T*>(bias_scratch),
      static_cast<T*>(grad_bias),
      a.batch,
      count);
}

}  // namespace vitfast
