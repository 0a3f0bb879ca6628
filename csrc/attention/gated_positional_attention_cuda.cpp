// Inference only. For gradients and other sizes and types, vitfast/ops/gated_positional_attention.py uses other
// operators.

#include "csrc/attention/attention_tensors.h"
#include "csrc/cuda/tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  static Tensor rows(const Tensor& tensor) { return with_aligned_rows(tensor); }

  // Rows are read 4 bytes at a time; unaligned rows are copied, padded to an even length.
  static Tensor positions(const Tensor& position) {
    constexpr int64_t elements = 4 / sizeof(Half);
    const bool aligned = reinterpret_cast<uintptr_t>(position.const_data_ptr()) % 4 == 0;
    const int64_t heads = position.size(0), tokens = position.size(1);
    if (aligned && position.stride(2) == 1 && position.stride(1) % elements == 0 && position.stride(0) % elements == 0)
      return position;
    Tensor padded = new_tensor(position, {heads, tokens, (tokens + 1) / elements * elements});
    Tensor copied = torch::stable::narrow(padded, 2, 0, tokens);
    torch::stable::copy_(copied, position);
    return copied;
  }

  static void forward(const GatedPositionalAttention& a, const Tensor& like) {
    const CurrentStream stream(like);
    const bool is_half = like.scalar_type() == ScalarType::Half;
    STD_TORCH_CHECK(
        is_half || like.scalar_type() == ScalarType::BFloat16,
        "gated_positional_attention: the CUDA kernel takes float16 and bfloat16");
    if (is_half) return launch_gated_positional_attention<Half>(a, stream);
    launch_gated_positional_attention<BFloat16>(a, stream);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("gated_positional_attention", TORCH_BOX(&gated_positional_attention<Cuda>));
}

}  // namespace vitfast
