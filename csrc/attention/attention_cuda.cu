#include "csrc/attention/attention_backward_launch.cuh"
#include "csrc/attention/attention_cuda_tensors.h"
#include "csrc/attention/attention_forward_launch.cuh"
#include "csrc/attention/attention_tensors.h"
#include "csrc/cuda/current_stream.cuh"

namespace vitfast {
namespace {

struct Cuda : AttentionCudaTensors {
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
