// ConViT's attention on tensors, for every device: checks, views, allocation. A device brings, beside what
// attention_tensors.h asks for,
//
//     static Tensor positions(const Tensor&);                     the probabilities as the kernel can read them
//     static void forward(const GatedPositionalAttention&, const Tensor& like);

#pragma once

#include "csrc/attention/attention_tensors.h"

namespace vitfast {

template <typename Device>
Tensor gated_positional_attention(
    const Tensor& qkv_in,       // [B, N, 3, H, D]
    const Tensor& position_in,  // [H, N, N]
    const Tensor& gate_in,      // [H], float, or double for such a qkv
    double scale) {
  const char* op = "gated_positional_attention";
  const AttentionSizes s = check_packed(op, qkv_in);
  check_same_type(op, "position", position_in, qkv_in);
  check_sizes(op, "position", position_in, {s.heads, s.tokens, s.tokens});
  check_sizes(op, "gate", gate_in, {s.heads});
  STD_TORCH_CHECK(gate_in.scalar_type() == computing_type(qkv_in), op, ": gate has a wrong dtype");
  STD_TORCH_CHECK(gate_in.is_cuda() == qkv_in.is_cuda(), op, ": gate is on another device than the input");
  const Tensor qkv = Device::rows(qkv_in), position = Device::positions(position_in), gate = as_contiguous(gate_in);
  const Tensor out = Device::new_tensor(qkv, s.packed_out(), qkv.scalar_type());
  GatedPositionalAttention arguments{};
  arguments.q = packed_view(qkv, 0);
  arguments.k = packed_view(qkv, 1);
  arguments.v = packed_view(qkv, 2);
  arguments.out = tokens_first_view(out);
  describe(arguments, qkv, s, std::nullopt, scale);
  arguments.position = position.const_data_ptr();
  arguments.position_head_stride = position.stride(0);
  arguments.position_row_stride = position.stride(1);
  arguments.gate = gate.const_data_ptr();
  if (s.batch * s.heads * s.tokens > 0) Device::forward(arguments, qkv);
  return out;
}

}  // namespace vitfast
