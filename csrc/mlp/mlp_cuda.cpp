// Two linear layers of csrc/linear. The first applies GELU, and stores its input too if there is a backward, which
// fuses GELU's derivative and the gradient of the first bias into a GEMM epilogue. vitfast/ops/mlp.py uses other
// operators for other widths and types.

#include "csrc/linear/linear_cuda.h"
#include "csrc/mlp/mlp_tensors.h"

namespace vitfast {
namespace {

EpilogueActivation activation_of(const std::string& approximate) {
  STD_TORCH_CHECK(
      approximate == "none" || approximate == "tanh", "mlp: approximate must be none or tanh, got ", approximate);
  return approximate == "tanh" ? EpilogueActivation::gelu_tanh : EpilogueActivation::gelu;
}

// activation(x wᵀ + b) (+ residual).
LinearResult linear(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    EpilogueActivation activation,
    const std::optional<Tensor>& residual,
    bool saves_sum) {
  return run_linear<gemm_on_cuda>({x, weight, bias, activation, std::nullopt, residual, {}}, saves_sum);
}

std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> mlp_forward(
    const Tensor& x,                        // [..., C]
    const Tensor& fc1_weight,               // [F, C]
    const std::optional<Tensor>& fc1_bias,  // [F]
    const Tensor& fc2_weight,               // [C_out, F]
    const std::optional<Tensor>& fc2_bias,  // [C_out]
    const std::optional<Tensor>& residual,  // [..., C_out]
    std::string approximate,
    bool save_for_backward) {
  check_mlp_weights(x, fc1_weight, fc2_weight);
  check_like("mlp", "fc1_bias", fc1_bias, x, {fc1_weight.size(0)});
  check_like("mlp", "fc2_bias", fc2_bias, x, {fc2_weight.size(0)});
  check_like("mlp", "residual", residual, x, linear_sizes(x, fc2_weight));
  const LinearResult hidden =
      linear(x, fc1_weight, fc1_bias, activation_of(approximate), std::nullopt, save_for_backward);
  const LinearResult result = linear(hidden.out, fc2_weight, fc2_bias, EpilogueActivation::none, residual, false);
  return {result.out, hidden.sum, save_for_backward ? std::optional<Tensor>(hidden.out) : std::nullopt};
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
  check_mlp_weights(x, fc1_weight, fc2_weight);
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
  const auto column_sums = [](const Tensor& rows) {
    return epilogue_gradients_on_cuda({rows, std::nullopt, EpilogueActivation::none, std::nullopt, true})->grad_bias;
  };
  return {
      reshaped(torch::stable::matmul(hidden.grad_sum, fc1_weight), sizes_of(x)),
      weight_gradient(hidden.grad_sum, as_rows(x)),
      has_fc1_bias ? hidden.grad_bias : std::nullopt,
      weight_gradient(grad, as_rows(*activation)),
      has_fc2_bias ? column_sums(grad) : std::nullopt};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("mlp_forward", TORCH_BOX(&mlp_forward));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward));
}

}  // namespace vitfast
