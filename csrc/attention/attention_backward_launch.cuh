// Selects and launches the attention backward kernel.

#pragma once

#include "csrc/attention/attention_backward_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// Instances for sequences of at most three tokens plus 7 x 7 patches (ViT-B/32 at 224 pixels, DVT's first exit), 8 x 8
// or 10 x 10 (CIFAR, DVT's second exit), and 14 x 14 (224).
template <typename T>
void launch_attention_backward(const AttentionBackward& a, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  with_range<0, 4, 7, 13>(ceil_div(a.tokens, attention_tile_rows), [&](auto, auto warps) {
    // registers are allocated to four warps at a time: blocks of 7 or 13 warps leave 128 per thread
    using Shape = AttentionBackwardShape<T, warps, warps == 4 ? 4 : 2>;
    constexpr bool is_small = Shape::key_rows <= attention_backward_small_tokens;
    static_assert(is_small || Shape::key_rows >= attention_cuda_max_tokens);
    static_assert(Shape::bytes <= (is_small ? attention_shared_bytes_everywhere : attention_backward_largest_bytes));
    launch(attention_backward_kernel<T, Shape>, a.batch * a.heads, Shape::threads, Shape::bytes, stream, a);
  });
}

}  // namespace vitfast
