// The products are torch's: on the CPU its library (MKL or oneDNN) holds about 80 % of peak at ViT shapes and is the
// faster one today. What lies between them is ours: GELU, the residual, and in the backward GELU's value and derivative
// in one pass; only GELU of 16-bit numbers that need no backward is torch's, too.

#include "csrc/cpu/tensors.h"
#include "csrc/linear/torch_operators.h"
#include "csrc/mlp/mlp_tensors.h"

namespace vitfast {
namespace {

Tensor transposed(const Tensor& x) {
  return torch::stable::transpose(x, 0, 1);
}

bool is_tanh(const std::string& approximate) {
  STD_TORCH_CHECK(
      approximate == "none" || approximate == "tanh", "mlp: approximate must be none or tanh, got ", approximate);
  return approximate == "tanh";
}

constexpr int64_t gelu_work = 16;  // cost of a GELU relative to moving an element

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
  const bool tanh = is_tanh(approximate);
  const Tensor pre_activation = as_contiguous(torch_linear(x, fc1_weight, fc1_bias));
  const bool is_narrow = type_of(x) == Type::bfloat16 || type_of(x) == Type::float16;
  Tensor activation = pre_activation;
  if (is_narrow && !save_for_backward) {
    // faster today: rounding to 16 bits costs more in vitfast's kernel
    activation = call_torch("aten::gelu", "", pre_activation, approximate);
  } else {
    if (save_for_backward) activation = new_tensor(x, sizes_of(pre_activation));
    const Gelu arguments{
        type_of(x), tanh, pre_activation.const_data_ptr(), nullptr, activation.mutable_data_ptr(), nullptr};
    parallel(activation.numel(), gelu_work, cpu_kernels().gelu_forward, arguments);
  }
  Tensor out = as_contiguous(torch_linear(activation, fc2_weight, fc2_bias));
  check_like("mlp", "residual", residual, x, sizes_of(out));
  if (residual.has_value()) out = torch_add(out, *residual);
  return {out, save_for_backward ? std::optional<Tensor>(pre_activation) : std::nullopt, std::nullopt};
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, Tensor, std::optional<Tensor>> mlp_backward(
    const Tensor& grad_out,        // [..., C_out]
    const Tensor& x,               // [..., C]
    const Tensor& pre_activation,  // [..., F]
    const std::optional<Tensor>&,  // the activation is computed again with its derivative
    const Tensor& fc1_weight,      // [F, C]
    const Tensor& fc2_weight,      // [C_out, F]
    std::string approximate,
    bool has_fc1_bias,
    bool has_fc2_bias) {
  check_mlp_weights(x, fc1_weight, fc2_weight);
  check_like("mlp_backward", "grad_out", grad_out, x, with_last(x, fc2_weight.size(0)));
  check_like("mlp_backward", "pre_activation", pre_activation, x, with_last(x, fc1_weight.size(0)));

  const Tensor grad_rows = as_rows(grad_out);
  const Tensor pre_rows = as_contiguous(as_rows(pre_activation));
  const Tensor grad_hidden = as_contiguous(torch::stable::matmul(grad_rows, fc2_weight));
  const Tensor activation = new_tensor(x, sizes_of(pre_rows));
  const Gelu arguments{
      type_of(x),
      is_tanh(approximate),
      pre_rows.const_data_ptr(),
      grad_hidden.const_data_ptr(),
      activation.mutable_data_ptr(),
      grad_hidden.mutable_data_ptr()};
  parallel(activation.numel(), gelu_work, cpu_kernels().gelu_backward, arguments);
  const auto bias_gradient = [](bool wanted, const Tensor& grad) {
    return wanted ? std::optional<Tensor>(sum_of_rows(grad)) : std::nullopt;
  };
  return {
      as_contiguous(reshaped(torch::stable::matmul(grad_hidden, fc1_weight), sizes_of(x))),
      as_contiguous(torch::stable::matmul(transposed(grad_hidden), as_rows(x))),
      bias_gradient(has_fc1_bias, grad_hidden),
      as_contiguous(torch::stable::matmul(transposed(grad_rows), activation)),
      bias_gradient(has_fc2_bias, grad_rows)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("mlp_forward", CHECKED_BOX(&mlp_forward));
  m.impl("mlp_backward", CHECKED_BOX(&mlp_backward));
}

}  // namespace vitfast
