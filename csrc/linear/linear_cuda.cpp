#include "csrc/linear/linear_cuda.h"

#include <climits>
#include <stdexcept>

#include "csrc/cuda/tensors.h"

namespace vitfast {
namespace {

// Launches the fastest kernel in this build that the current device supports.
template <typename T>
void launch_gemm(const GemmArguments& arguments, Stream stream) {
#if VITFAST_HAS_SM90A
  if (is_compute_capability_90()) return launch_gemm_sm90a<T>(arguments, stream);
#endif
#if VITFAST_HAS_SM80
  launch_gemm_sm80<T>(arguments, stream);
#else
  throw std::runtime_error("linear: this build has no GEMM kernel for this GPU's compute capability");
#endif
}

bool is_narrow(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16;
}

float* floats_or_null(const std::optional<Tensor>& tensor) {
  return static_cast<float*>(mutable_data_or_null(tensor));
}

// Whether a kernel supports the type and shape, and has tiles for a third of the multiprocessors: with fewer, cuBLAS,
// which splits the depth, and an epilogue of its own are faster (measured on an H100).
bool has_gemm_kernel(ScalarType type, int64_t rows, int64_t columns, int64_t depth) {
  const bool supports_shape = rows > 0 && rows <= INT_MAX && columns > 0 && columns <= INT_MAX && depth > 0 &&
                              depth <= INT_MAX && columns % gemm_alignment == 0 && depth % gemm_alignment == 0;
  if (!is_narrow(type) || !supports_shape) return false;
  constexpr int64_t tile_columns = 192;
  const int64_t tiles = count_row_tiles(int(rows)) * ceil_div(columns, tile_columns);
  return 3 * tiles >= device_attribute(cudaDevAttrMultiProcessorCount);
}

// The epilogue that computes a call, if there is one: GELU's have no scale and residual, and only they store the sum.
std::optional<GemmEpilogue> epilogue_of(const LinearCall& call, bool saves_sum) {
  if (call.activation == EpilogueActivation::none) {
    return saves_sum ? std::nullopt : std::optional(GemmEpilogue::linear);
  }
  if (call.scale.has_value() || call.residual.has_value()) return std::nullopt;
  return call.activation == EpilogueActivation::gelu_tanh ? GemmEpilogue::gelu_tanh : GemmEpilogue::gelu;
}

}  // namespace

std::optional<LinearResult> gemm_on_cuda(const LinearCall& call, bool saves_sum) {
  const int64_t rows = count_rows(call.x), columns = call.weight.size(0), depth = call.weight.size(1);
  const std::optional<GemmEpilogue> epilogue = epilogue_of(call, saves_sum);
  if (!epilogue.has_value() || !has_gemm_kernel(call.x.scalar_type(), rows, columns, depth)) return std::nullopt;
  const Tensor x = aligned(call.x), weight = aligned(call.weight);
  const std::optional<Tensor> bias = aligned(call.bias), scale = aligned(call.scale);
  const std::optional<Tensor> residual = aligned(call.residual);
  const Tensor out = new_tensor(x, linear_sizes(x, weight));
  std::optional<Tensor> sum;
  if (saves_sum) sum = new_tensor(x, sizes_of(out));

  const GemmArguments arguments{
      x.const_data_ptr(),
      weight.const_data_ptr(),
      data_or_null(bias),
      data_or_null(scale),
      data_or_null(residual),
      out.mutable_data_ptr(),
      mutable_data_or_null(sum),
      nullptr,
      int(rows),
      int(columns),
      int(depth),
      *epilogue};
  const CurrentStream stream(x);
  with_narrow_element("linear", type_of(x), [&](auto element) { launch_gemm<decltype(element)>(arguments, stream); });
  if (call.rounding.has_value()) quantize_float_in_place(out, *call.rounding);
  return LinearResult{out, sum};
}

std::optional<EpilogueGradients> epilogue_gradients_on_cuda(const EpilogueGradientCall& call) {
  const ScalarType type = call.grad.scalar_type();
  const int64_t rows = call.grad.size(0), columns = call.grad.size(1);
  const bool supports_shape = rows > 0 && columns > 0 && columns % gemm_alignment == 0;
  if (!is_narrow(type) || !supports_shape) return std::nullopt;
  if (!call.has_bias && !call.sum.has_value()) return EpilogueGradients{call.grad, std::nullopt, std::nullopt};

  const Tensor grad = aligned(call.grad);
  const std::optional<Tensor> sum = aligned(call.sum), scale = aligned(call.scale);
  const int64_t rows_per_chunk = epilogue_gradient_rows_per_chunk(rows, columns);
  const std::vector<int64_t> partial_sizes{ceil_div(rows, rows_per_chunk), columns};
  std::optional<Tensor> grad_sum, partial_bias, partial_scale;
  if (sum.has_value()) grad_sum = new_tensor(grad, sizes_of(grad));
  if (call.has_bias) partial_bias = new_tensor(grad, partial_sizes, ScalarType::Float);
  if (scale.has_value()) partial_scale = new_tensor(grad, partial_sizes, ScalarType::Float);
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
  with_narrow_element(
      "linear", type_of(grad), [&](auto element) { launch_epilogue_gradient<decltype(element)>(arguments, stream); });

  EpilogueGradients result{grad_sum.has_value() ? *grad_sum : grad, std::nullopt, std::nullopt};
  if (partial_bias.has_value()) result.grad_bias = sum_of_partial(*partial_bias, type);
  if (partial_scale.has_value()) result.grad_scale = sum_of_partial(*partial_scale, type);
  return result;
}

EpilogueGradients gemm_gradient_on_cuda(
    const Tensor& grad, const Tensor& weight, const Tensor& pre_activation, EpilogueActivation activation) {
  const ScalarType type = grad.scalar_type();
  const int64_t rows = grad.size(0), depth = grad.size(1), columns = weight.size(1);
  if (activation != EpilogueActivation::gelu || !has_gemm_kernel(type, rows, columns, depth)) {
    const EpilogueGradientCall call{
        torch::stable::matmul(grad, weight), pre_activation, activation, std::nullopt, true};
    const std::optional<EpilogueGradients> fused = epilogue_gradients_on_cuda(call);
    return fused.has_value() ? *fused : gradients_by_torch(call);
  }
  // the kernels read rows of the depth; transposing a weight costs little beside the rows of a training batch
  const Tensor grad_rows = aligned(grad), weight_columns = aligned(torch::stable::transpose(weight, 0, 1));
  const Tensor pre_rows = aligned(pre_activation);
  const Tensor out = new_tensor(pre_rows, sizes_of(pre_rows));
  const Tensor partial = new_tensor(grad, {count_row_tiles(int(rows)), columns}, ScalarType::Float);
  const GemmArguments arguments{
      grad_rows.const_data_ptr(),
      weight_columns.const_data_ptr(),
      nullptr,
      nullptr,
      pre_rows.const_data_ptr(),
      out.mutable_data_ptr(),
      nullptr,
      static_cast<float*>(partial.mutable_data_ptr()),
      int(rows),
      int(columns),
      int(depth),
      GemmEpilogue::gelu_gradient};
  const CurrentStream stream(grad);
  with_narrow_element(
      "linear", type_of(grad), [&](auto element) { launch_gemm<decltype(element)>(arguments, stream); });
  return {out, sum_of_partial(partial, type), std::nullopt};
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward<gemm_on_cuda>));
  m.impl("linear_backward", TORCH_BOX(&linear_backward<epilogue_gradients_on_cuda>));
}

}  // namespace vitfast
