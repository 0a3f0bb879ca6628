#include "csrc/linear/gemm_cuda.h"

#include <climits>

#include "csrc/cuda/current_stream.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/linear/epilogue_gradient_launch.cuh"
#include "csrc/linear/gemm_launch.cuh"

namespace vitfast {
namespace {

bool is_narrow(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16;
}

// f(Half{}) or f(BFloat16{}).
template <typename F>
void with_narrow_type(ScalarType type, const F& f) {
  type == ScalarType::Half ? f(Half{}) : f(BFloat16{});
}

Tensor new_floats(const Tensor& like, int64_t rows, int64_t columns) {
  const std::vector<int64_t> sizes{rows, columns};
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, ScalarType::Float);
}

Tensor like_rows(const Tensor& rows) {
  return torch::stable::new_empty(rows, rows.sizes(), rows.scalar_type());
}

// From the rows of partial sums to a gradient of the parameter's type.
Tensor finished(const Tensor& partial, ScalarType type) {
  return as_type(sum_of_rows(partial), type);
}

float* floats_or_null(const std::optional<Tensor>& tensor) {
  return static_cast<float*>(mutable_data_or_null(tensor));
}

}  // namespace

// The tensor as TMA and 16-byte loads can read it, or a copy.
Tensor readable(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  return is_pack_aligned(rows.const_data_ptr()) ? rows : torch::stable::clone(rows);
}

std::optional<Tensor> readable(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(readable(*tensor)) : std::nullopt;
}

bool has_gemm_on_cuda(ScalarType type, int64_t rows, int64_t columns, int64_t depth) {
  return is_narrow(type) && rows > 0 && rows <= INT_MAX && columns > 0 && columns <= INT_MAX && depth > 0 &&
         depth <= INT_MAX && columns % gemm_alignment == 0 && depth % gemm_alignment == 0;
}

std::optional<Tensor> gemm_on_cuda(const LinearCall& call) {
  const int64_t rows = count_rows(call.x), columns = call.weight.size(0), depth = call.weight.size(1);
  if (!has_gemm_on_cuda(call.x.scalar_type(), rows, columns, depth)) return std::nullopt;
  const Tensor x = readable(call.x), weight = readable(call.weight);
  const std::optional<Tensor> bias = readable(call.bias), scale = readable(call.scale);
  const std::optional<Tensor> residual = readable(call.residual);
  const std::vector<int64_t> sizes = linear_sizes(x, weight);
  const Tensor out = torch::stable::new_empty(x, {sizes.data(), sizes.size()}, x.scalar_type());

  const std::optional<FloatRounding> rounding = read_fused_rounding("linear", call.rounding);
  const bool rounds_in_kernel = rounding.has_value() && rounding->rounding == Rounding::nearest_even;
  GemmEpilogue epilogue{call.activation, rounds_in_kernel, {}};
  if (rounds_in_kernel) epilogue.format = rounding->format32;
  const GemmArguments product{
      x.const_data_ptr(),
      weight.const_data_ptr(),
      data_or_null(bias),
      data_or_null(scale),
      data_or_null(residual),
      out.mutable_data_ptr(),
      int(rows),
      int(columns),
      int(depth),
      epilogue};
  const CurrentStream stream(x);
  with_narrow_type(x.scalar_type(), [&](auto element) { launch_gemm<decltype(element)>(product, stream); });
  if (rounding.has_value() && !rounds_in_kernel) quantize_float_in_place(out, call.rounding);
  return out;
}

std::optional<EpilogueGradients> epilogue_gradients_on_cuda(const EpilogueGradientCall& call) {
  const ScalarType type = call.grad.scalar_type();
  const int64_t rows = call.grad.size(0), columns = call.grad.size(1);
  const bool takes_shape = rows > 0 && columns > 0 && columns % epilogue_gradient_width == 0;
  if (!is_narrow(type) || !takes_shape) return std::nullopt;
  if (!call.has_bias && !call.sum.has_value()) return EpilogueGradients{call.grad, std::nullopt, std::nullopt};

  const Tensor grad = readable(call.grad);
  const std::optional<Tensor> sum = readable(call.sum), scale = readable(call.scale);
  const int64_t rows_per_chunk = epilogue_gradient_rows_per_chunk(rows, columns);
  const int64_t chunks = epilogue_gradient_chunks(rows, rows_per_chunk);
  std::optional<Tensor> grad_sum, partial_bias, partial_scale;
  if (sum.has_value()) grad_sum = like_rows(grad);
  if (call.has_bias) partial_bias = new_floats(grad, chunks, columns);
  if (scale.has_value()) partial_scale = new_floats(grad, chunks, columns);
  const EpilogueGradient arguments{
      grad.const_data_ptr(),
      data_or_null(sum),
      data_or_null(scale),
      mutable_data_or_null(grad_sum),
      floats_or_null(partial_bias),
      floats_or_null(partial_scale),
      rows,
      columns,
      rows_per_chunk,
      call.activation};
  const CurrentStream stream(grad);
  with_narrow_type(type, [&](auto element) { launch_epilogue_gradient<decltype(element)>(arguments, stream); });

  EpilogueGradients result{grad_sum.has_value() ? *grad_sum : grad, std::nullopt, std::nullopt};
  if (partial_bias.has_value()) result.grad_bias = finished(*partial_bias, type);
  if (partial_scale.has_value()) result.grad_scale = finished(*partial_scale, type);
  return result;
}

EpilogueGradients gemm_gradient_on_cuda(
    const Tensor& grad, const Tensor& weight, const Tensor& pre_activation, EpilogueActivation activation) {
  const ScalarType type = grad.scalar_type();
  const int64_t rows = grad.size(0), depth = grad.size(1), columns = weight.size(1);
  STD_TORCH_CHECK(
      has_gemm_on_cuda(type, rows, columns, depth),
      "mlp: the CUDA products take float16 and bfloat16, and widths that are multiples of 8");
  const Tensor grad_rows = readable(grad), weight_rows = readable(weight), pre_rows = readable(pre_activation);
  const Tensor out = like_rows(pre_rows);
  const Tensor partial = new_floats(grad, count_row_tiles(int(rows)), columns);
  const GemmGradientArguments product{
      grad_rows.const_data_ptr(),
      weight_rows.const_data_ptr(),
      pre_rows.const_data_ptr(),
      out.mutable_data_ptr(),
      static_cast<float*>(partial.mutable_data_ptr()),
      int(rows),
      int(columns),
      int(depth),
      activation};
  const CurrentStream stream(grad);
  with_narrow_type(type, [&](auto element) { launch_gemm<decltype(element)>(product, stream); });
  return {out, finished(partial, type), std::nullopt};
}

}  // namespace vitfast
