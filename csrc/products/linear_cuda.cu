#include <climits>

#include "csrc/cuda/current_stream.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/products/linear_tensors.h"
#include "csrc/products/product_launch.cuh"

namespace vitfast {
namespace {

// The tensor as TMA and 16-byte loads can read it, or a copy.
Tensor readable(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  return is_pack_aligned(rows.const_data_ptr()) ? rows : torch::stable::clone(rows);
}

std::optional<Tensor> readable(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(readable(*tensor)) : std::nullopt;
}

struct Cuda {
  // The types and shapes that the kernels take; torch's operators compute the others.
  static bool has_kernel(const LinearCall& call) {
    const ScalarType type = call.x.scalar_type();
    const int64_t rows = count_rows(call.x), columns = call.weight.size(0), depth = call.weight.size(1);
    return (type == ScalarType::Half || type == ScalarType::BFloat16) && rows > 0 && rows <= INT_MAX && columns > 0 &&
           columns <= INT_MAX && depth > 0 && depth <= INT_MAX && columns % product_alignment == 0 &&
           depth % product_alignment == 0;
  }

  static std::optional<Tensor> product(const LinearCall& call) {
    if (!has_kernel(call)) return std::nullopt;
    const Tensor x = readable(call.x), weight = readable(call.weight);
    const std::optional<Tensor> bias = readable(call.bias), scale = readable(call.scale);
    const std::optional<Tensor> residual = readable(call.residual);
    const std::vector<int64_t> sizes = linear_sizes(x, weight);
    const Tensor out = torch::stable::new_empty(x, {sizes.data(), sizes.size()}, x.scalar_type());

    const std::optional<FloatRounding> rounding = read_fused_rounding("linear", call.rounding);
    const bool rounds_in_kernel = rounding.has_value() && rounding->rounding == Rounding::nearest_even;
    ProductEpilogue epilogue{call.activation, rounds_in_kernel, {}};
    if (rounds_in_kernel) epilogue.format = rounding->format32;
    const Product product{
        x.const_data_ptr(),
        weight.const_data_ptr(),
        data_or_null(bias),
        data_or_null(scale),
        data_or_null(residual),
        out.mutable_data_ptr(),
        int(count_rows(x)),
        int(weight.size(0)),
        int(weight.size(1)),
        epilogue};
    const CurrentStream stream(x);
    if (x.scalar_type() == ScalarType::Half) {
      launch_product<Half>(product, stream);
    } else {
      launch_product<BFloat16>(product, stream);
    }
    if (rounding.has_value() && !rounds_in_kernel) quantize_float_in_place(out, call.rounding);
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward<Cuda>));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace vitfast
