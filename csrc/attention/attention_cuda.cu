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
    if (is_half("attention", like)) return launch_attention_forward<Half>(a, stream);
    launch_attention_forward<BFloat16>(a, stream);
  }

  static void backward(const AttentionBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    std::optional<Tensor> bias, row_statistics;
    if (sums_bias_over_images(a)) bias = new_tensor(like, {a.batch, a.heads, a.tokens, a.tokens}, like.scalar_type());
    if (goes_by_tiles(a)) row_statistics = new_tensor(like, {attention_row_statistics(a)}, ScalarType::Float);
    const AttentionBackwardScratch scratch{
        mutable_data_or_null(bias), static_cast<float*>(mutable_data_or_null(row_statistics))};
    if (is_half("attention", like)) return launch_attention_backward<Half>(a, scratch, stream);
    launch_attention_backward<BFloat16>(a, scratch, stream);
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
