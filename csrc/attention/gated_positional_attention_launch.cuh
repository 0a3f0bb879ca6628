// From the arguments of ConViT's attention to the instance of the attention kernel.

#pragma once

#include "csrc/attention/attention_forward_launch.cuh"
#include "csrc/attention/gated_positional_softmax.cuh"

namespace vitfast {

// Head dimensions of 48 and 64 are those of ConViT and of its "plus" models. T: Half or BFloat16.
template <typename T>
void launch_gated_positional_attention(const GatedPositionalAttention& a, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  if (a.tokens > attention_whole_tokens<T>) {
    throw std::runtime_error("gated_positional_attention: the CUDA kernel takes up to 256 tokens");
  }
  if (a.head_dim <= 48) return launch_attention_forward_whole<T, 48>(a, stream);
  if (a.head_dim <= 64) return launch_attention_forward_whole<T, 64>(a, stream);
  return launch_attention_forward_whole<T, 128>(a, stream);
}

}  // namespace vitfast
