#include "csrc/cuda/tensors.h"
#include "csrc/layer_norm/layer_norm_tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  // enough blocks to occupy a large GPU
  static constexpr int64_t max_chunks = 1024, min_rows_per_chunk = 16;

  // Parameters keep their type if it is the type of x; otherwise they are converted to float32.
  static std::tuple<std::optional<Tensor>, std::optional<Tensor>, Type> parameters(
      const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& x) {
    const auto has_type_of_x = [&](const std::optional<Tensor>& parameter) {
      return !parameter.has_value() || parameter->scalar_type() == x.scalar_type();
    };
    const bool same_type = has_type_of_x(weight) && has_type_of_x(bias);
    const ScalarType type = same_type ? x.scalar_type() : ScalarType::Float;
    const auto row = [&](const std::optional<Tensor>& parameter) -> std::optional<Tensor> {
      if (!parameter.has_value()) return std::nullopt;
      return as_contiguous(as_type(*parameter, type));
    };
    return {row(weight), row(bias), same_type ? type_of(x) : Type::float32};
  }

  static void forward(const LayerNormForward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_element("layer_norm", a.type, [&](auto element) { launch_layer_norm_forward<decltype(element)>(a, stream); });
  }

  static void backward(const LayerNormBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_element("layer_norm", a.type, [&](auto element) { launch_layer_norm_backward<decltype(element)>(a, stream); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward<Cuda>));
  m.impl("add_layer_norm_forward", TORCH_BOX(&add_layer_norm_forward<Cuda>));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward<Cuda>));
}

}  // namespace vitfast
