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
    with_narrow_element("gated_positional_attention", a.type, [&](auto element) {
      launch_gated_positional_attention<decltype(element)>(a, stream);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("gated_positional_attention", TORCH_BOX(&gated_positional_attention<Cuda>));
}

}  // namespace vitfast
