#include "csrc/cuda/current_stream.cuh"
#include "csrc/layer_norm/layer_norm_launch.cuh"
#include "csrc/layer_norm/layer_norm_tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  // as many blocks as keep a large GPU busy
  static constexpr int64_t max_chunks = 512, min_rows_per_chunk = 16;

  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
  }

  // Parameters of x's type are read as they are, others in float32.
  static std::tuple<std::optional<Tensor>, std::optional<Tensor>, Type> parameters(
      const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& x) {
    const auto has_type_of_x = [&](const std::optional<Tensor>& parameter) {
      return !parameter.has_value() || parameter->scalar_type() == x.scalar_type();
    };
    const bool as_they_are = has_type_of_x(weight) && has_type_of_x(bias);
    const ScalarType type = as_they_are ? x.scalar_type() : ScalarType::Float;
    const auto row = [&](const std::optional<Tensor>& parameter) -> std::optional<Tensor> {
      if (!parameter.has_value()) return std::nullopt;
      return as_contiguous(as_type(*parameter, type));
    };
    return {row(weight), row(bias), as_they_are ? type_of(x) : Type::float32};
  }

  static void forward(const LayerNormForward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_types(a.type, a.parameter_type, [&](auto element, auto parameter) {
      launch_layer_norm_forward<decltype(element), decltype(parameter)>(a, stream);
    });
  }

  static void backward(const LayerNormBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_types(a.type, a.parameter_type, [&](auto element, auto parameter) {
      launch_layer_norm_backward<decltype(element), decltype(parameter)>(a, stream);
    });
  }

 private:
  template <typename F>
  static void with_types(Type type, Type parameter_type, const F& f) {
    const bool wide_parameters = parameter_type == Type::float32;
    switch (type) {
      case Type::float32:
        return f(float{}, float{});
      case Type::bfloat16:
        return wide_parameters ? f(BFloat16{}, float{}) : f(BFloat16{}, BFloat16{});
      case Type::float16:
        return wide_parameters ? f(Half{}, float{}) : f(Half{}, Half{});
      case Type::float64:
        STD_TORCH_CHECK(false, "layer_norm: the CUDA kernel takes float32, bfloat16 and float16");
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward<Cuda>));
  m.impl("add_layer_norm_forward", TORCH_BOX(&add_layer_norm_forward<Cuda>));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward<Cuda>));
}

}  // namespace vitfast
