#include "csrc/attention/attention_backward_launch.cuh"
#include "csrc/attention/attention_forward_launch.cuh"
#include "csrc/attention/attention_tensors.h"
#include "csrc/cuda/current_stream.cuh"

namespace vitfast {
namespace {

struct Cuda {
  // Rows are read 16 bytes at a time.
  static Tensor rows(const Tensor& tensor) {
    const int64_t elements = 16 / element_size(tensor);
    bool readable = tensor.stride(-1) == 1 && is_pack_aligned(tensor.const_data_ptr());
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) readable = readable && tensor.stride(i) % elements == 0;
    return readable ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
  }

  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
  }

  static void forward(const AttentionForward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_type(a.type, [&](auto element) { launch_attention_forward<decltype(element)>(a, stream); });
  }

  static void backward(const AttentionBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_type(a.type, [&](auto element) {
      using T = decltype(element);
      std::optional<Tensor> bias, row_statistics;
      if (sums_bias_over_images(a)) bias = new_tensor(like, {a.batch, a.heads, a.tokens, a.tokens}, like.scalar_type());
      if (goes_by_tiles<T>(a)) row_statistics = new_tensor(like, {attention_row_statistics(a)}, ScalarType::Float);
      const AttentionBackwardScratch scratch{
          mutable_data_or_null(bias), static_cast<float*>(mutable_data_or_null(row_statistics))};
      launch_attention_backward<T>(a, scratch, stream);
    });
  }

 private:
  // Calls `function` with an element of the type.
  template <typename Function>
  static void with_type(Type type, const Function& function) {
    switch (type) {
      case Type::float32:
        return function(float());
      case Type::bfloat16:
        return function(BFloat16());
      case Type::float16:
        return function(Half());
      case Type::float64:
        STD_TORCH_CHECK(false, "attention: the CUDA kernels take float32, bfloat16 and float16, not float64");
    }
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
