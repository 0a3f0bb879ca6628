// Inference uses the fused kernel; training uses two GEMMs of csrc/linear, whose backward fuses GELU's derivative and
// the gradient of the first bias into a GEMM epilogue. vitfast/ops/mlp.py uses torch operators for other widths and
// types.

#include "csrc/common/tensors.h"
#include "csrc/cuda/tensors.cuh"
#include "csrc/linear/linear_cuda.h"
#include "csrc/mlp/mlp_kernel.cuh"
#include "csrc/mlp/mlp_tensors.h"

namespace vitfast {
namespace {

EpilogueActivation activation_of(const std::string& approximate) {
  STD_TORCH_CHECK(
      approximate == "none" || approximate == "tanh", "mlp: approximate must be none or tanh, got ", approximate);
  return approximate == "tanh" ? EpilogueActivation::gelu_tanh : EpilogueActivation::gelu;
}

// x wᵀ + b (+ residual).
Tensor gemm(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual = std::nullopt) {
  const std::optional<Tensor> no_scale;
  const std::vector<int64_t> no_rounding;
  const auto result =
      gemm_on_cuda(LinearCall{x, weight, bias, EpilogueActivation::none, no_scale, residual, no_rounding});
  STD_TORCH_CHECK(result.has_value(), "mlp: the CUDA GEMMs support widths that are multiples of 8");
  return *result;
}

using Saved = std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>>;

Saved forward_for_training(
    const Tensor& x,
    const Tensor& fc1_weight,
    const std::optional<Tensor>& fc1_bias,
    const Tensor& fc2_weight,
    const std::optional<Tensor>& fc2_bias,
    const std::optional<Tensor>& residual,
    const std::string& approximate) {
  activation_of(approximate);
  const Tensor pre_activation = gemm(x, fc1_weight, fc1_bias);
  const Tensor activation = call_torch("aten::gelu", "", pre_activation, approximate);
  return {gemm(activation, fc2_weight, fc2_bias, residual), pre_activation, activation};
}

Tensor forward_on_chip(
    const Tensor& x,
    const Tensor& fc1_weight,
    const std::optional<Tensor>& fc1_bias,
    const Tensor& fc2_weight,
    const std::optional<Tensor>& fc2_bias,
    const std::optional<Tensor>& residual,
    const std::string& approximate) {
  STD_TORCH_CHECK(approximate == "none", "mlp: the CUDA kernel for inference has the exact GELU");
  const int64_t channels = x.size(-1), hidden = fc1_weight.size(0);
  const Tensor x_rows = aligned(x), fc1_rows = aligned(fc1_weight), fc2_rows = aligned(fc2_weight);
  const auto fc1_shift = contiguous_or_none(fc1_bias), fc2_shift = contiguous_or_none(fc2_bias);
  const std::optional<Tensor> residual_rows = aligned(residual);
  const Tensor out = new_tensor(x, sizes_of(x));
  const MlpForward arguments{
      x_rows.const_data_ptr(),
      fc1_rows.const_data_ptr(),
      data_or_null(fc1_shift),
      fc2_rows.const_data_ptr(),
      data_or_null(fc2_shift),
      data_or_null(residual_rows),
      out.mutable_data_ptr(),
      channels > 0 ? x.numel() / channels : 0,
      channels,
      hidden};
  const CurrentStream stream(x);
  x.scalar_type() == ScalarType::Half ? launch_mlp<Half>(arguments, stream) : launch_mlp<BFloat16>(arguments, stream);
  return out;
}

void check_weights(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc2_weight) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Half || type == ScalarType::BFloat16, "mlp: the CUDA kernels take float16 and bfloat16");
  check_mlp_weights(x, fc1_weight, fc2_weight);
}

Saved mlp_forward(
    const Tensor& x,                        // [..., C]
    const Tensor& fc1_weight,               // [F, C]
    const std::optional<Tensor>& fc1_bias,  // [F]
    const Tensor& fc2_weight,               // [C_out, F]
    const std::optional<Tensor>& fc2_bias,  // [C_out]
    const std::optional<Tensor>& residual,  // [..., C_out]
    std::string approximate,
    bool save_for_backward) {
  check_weights(x, fc1_weight, fc2_weight);
  check_like("mlp", "fc1_bias", fc1_bias, x, {fc1_weight.size(0)});
  check_like("mlp", "fc2_bias", fc2_bias, x, {fc2_weight.size(0)});
  check_like("mlp", "residual", residual, x, linear_sizes(x, fc2_weight));
  if (save_for_backward) {
    return forward_for_training(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, approximate);
  }
  STD_TORCH_CHECK(
      fc2_weight.size(0) == x.size(-1), "mlp: the CUDA kernel for inference returns as many channels as it takes");
  const Tensor out = forward_on_chip(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, approximate);
  return {out, std::nullopt, std::nullopt};
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, Tensor, std::optional<Tensor>> mlp_backward(
    const Tensor& grad_out,                   // [..., C_out]
    const Tensor& x,                          // [..., C]
    const Tensor& pre_activation,             // [..., F]
    const std::optional<Tensor>& activation,  // [..., F]
    const Tensor& fc1_weight,                 // [F, C]
    const Tensor& fc2_weight,                 // [C_out, F]
    std::string approximate,
    bool has_fc1_bias,
    bool has_fc2_bias) {
  check_weights(x, fc1_weight, fc2_weight);
  check_like("mlp", "grad_out", grad_out, x, linear_sizes(x, fc2_weight));
  check_like("mlp", "pre_activation", pre_activation, x, linear_sizes(x, fc1_weight));
  check_like("mlp", "activation", activation, x, linear_sizes(x, fc1_weight));
  STD_TORCH_CHECK(activation.has_value(), "mlp_backward: activation is what forward returned");

  const auto weight_gradient = [](const Tensor& grad, const Tensor& inputs) {
    return as_contiguous(torch::stable::matmul(torch::stable::transpose(grad, 0, 1), inputs));
  };
  const Tensor grad = as_contiguous(as_rows(grad_out));
  const EpilogueGradients hidden =
      gemm_gradient_on_cuda(grad, fc2_weight, as_rows(pre_activation), activation_of(approximate));
  std::optional<Tensor> grad_fc2_bias;
  if (has_fc2_bias) {
    const std::optional<Tensor> nothing;
    grad_fc2_bias =
        epilogue_gradients_on_cuda(EpilogueGradientCall{grad, nothing, EpilogueActivation::none, nothing, true})
            ->grad_bias;
  }
  return {
      reshaped(torch::stable::matmul(hidden.grad_sum, fc1_weight), sizes_of(x)),
      weight_gradient(hidden.grad_sum, as_rows(x)),
      has_fc1_bias ? hidden.grad_bias : std::nullopt,
      weight_gradient(grad, as_rows(*activation)),
      grad_fc2_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("mlp_forward", TORCH_BOX(&mlp_forward));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward));
}

}  // namespace vitfast
