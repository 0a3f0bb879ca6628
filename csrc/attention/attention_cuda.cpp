#include "csrc/attention/attention_tensors.h"
#include "csrc/cuda/tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  static constexpr bool sums_bias_over_images = false;

  static Tensor rows(const Tensor& tensor) { return with_aligned_rows(tensor); }

  static void forward(const AttentionForward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_element("attention", a.type, [&](auto element) { launch_attention_forward<decltype(element)>(a, stream); });
  }

  static void backward(const AttentionBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_element("attention", a.type, [&](auto element) {
      using T = decltype(element);
      int device = 0, shared_bytes = 0;
      check_cuda(cudaGetDevice(&device));
      check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
      std::optional<Tensor> row_statistics;
      if (uses_tiles<T>(a, shared_bytes))
        row_statistics = new_tensor(like, {attention_row_statistics(a)}, ScalarType::Float);
      launch_attention_backward<T>(a, static_cast<float*>(mutable_data_or_null(row_statistics)), stream);
    });
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
