#include "csrc/attention/attention_tensors.h"
#include "csrc/cuda/tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  static constexpr bool sums_bias_over_images = false;

  static Tensor rows(const Tensor& tensor) { return with_aligned_rows(tensor); }

  static void forward(const AttentionForward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_narrow_element("attention", a.type, [&](auto element) {
      using T = decltype(element);
#if VITFAST_HAS_SM90A
      const bool is_plain = a.bias == nullptr && a.logits == nullptr && a.scale > 0;
      if (is_plain && is_compute_capability_90()) return launch_attention_forward_sm90a<T>(a, stream);
#endif
      launch_attention_forward<T>(a, stream);
    });
  }

  static void backward(const AttentionBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    const int shared_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    STD_TORCH_CHECK(
        a.tokens <= attention_backward_small_tokens || shared_bytes >= attention_backward_largest_bytes,
        "attention: the CUDA backward takes up to ",
        attention_backward_small_tokens,
        " tokens on this GPU, whose blocks have less than ",
        attention_backward_largest_bytes,
        " bytes of shared memory, not ",
        a.tokens);
    with_narrow_element(
        "attention", a.type, [&](auto element) { launch_attention_backward<decltype(element)>(a, stream); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward<Cuda>));
  m.impl("attention_backward", TORCH_BOX(&attention_backward<Cuda>));
  m.impl("attention_packed_forward", TORCH_BOX(&attention_packed_forward<Cuda>));
  m.impl("attention_packed_backward", TORCH_BOX(&attention_packed_backward<Cuda>));
}

}  // namespace vitfast
