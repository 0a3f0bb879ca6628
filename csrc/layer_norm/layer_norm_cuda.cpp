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
      return aligned(as_type(*parameter, type));
    };
    return {row(weight), row(bias), same_type ? type_of(x) : Type::float32};
  }

  // rows are packs of 16 bytes in registers; a stream of float32 may have a narrower branch
  static void check(const char* op, ScalarType stream, ScalarType branch, int64_t channels) {
    const bool is_narrow = branch == ScalarType::Half || branch == ScalarType::BFloat16;
    STD_TORCH_CHECK(
        branch == stream || (is_narrow && stream == ScalarType::Float), op, ": the CUDA kernel has no such dtypes");
    STD_TORCH_CHECK(
        channels % (is_narrow ? 8 : 4) == 0 && channels <= layer_norm_max_channels,
        op,
        ": the CUDA kernel supports multiples of ",
        is_narrow ? 8 : 4,
        " channels up to ",
        layer_norm_max_channels);
  }

  static Tensor rows(const Tensor& tensor) { return aligned(tensor); }

  static Tensor partial(const Tensor& like, const std::vector<int64_t>& sizes) {
    return new_tensor(like, sizes, ScalarType::Float);
  }
  static Tensor sum(const Tensor& partial) { return sum_of_partial(partial, ScalarType::Float); }

  // f(element of the stream, element of the branch).
  template <typename F>
  static void with_elements(Type type, Type branch_type, const F& f) {
    with_element(
        "layer_norm", branch_type, [&](auto branch) { type == branch_type ? f(branch, branch) : f(0.0f, branch); });
  }

  static void forward(const LayerNormForward& a, const Tensor& like) {
    for (const FloatRounding* rounding : {a.round_sum, a.round_operand, a.round_result}) {
      if (rounding == nullptr) continue;
      STD_TORCH_CHECK(
          a.branch_type == Type::float32 && rounding->rounding == Rounding::nearest_even,
          "layer_norm: the CUDA kernel rounds float32 to nearest, ties to even");
    }
    const CurrentStream stream(like);
    with_elements(a.type, a.branch_type, [&](auto element, auto branch) {
      launch_layer_norm_forward<decltype(element), decltype(branch)>(a, stream);
    });
  }

  static void backward(const LayerNormBackward& a, const Tensor& like) {
    const CurrentStream stream(like);
    with_elements(a.type, a.branch_type, [&](auto element, auto branch) {
      launch_layer_norm_backward<decltype(element), decltype(branch)>(a, stream);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward<Cuda>));
  m.impl("add_layer_norm_forward", TORCH_BOX(&add_layer_norm_forward<Cuda>));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward<Cuda>));
}

}  // namespace vitfast
