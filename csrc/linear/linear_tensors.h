// linear on tensors: checks, and the fallback by torch operators.

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/linear/gemm.h"
#include "csrc/linear/torch_operators.h"
#include "csrc/quantize/rounding_arguments.h"

namespace vitfast {

// Checked arguments of a call.
struct LinearCall {
  const Tensor& x;                    // [..., K]
  const Tensor& weight;               // [N, K]
  const std::optional<Tensor>& bias;  // [N]
  EpilogueActivation activation;
  const std::optional<Tensor>& scale;                   // [N]
  const std::optional<Tensor>& residual;                // [..., N]
  const std::optional<std::vector<int64_t>>& rounding;  // of the result
};

struct LinearResult {
  Tensor out;                 // [..., N]
  std::optional<Tensor> sum;  // x weightᵀ + bias [..., N], if the backward needs it
};

inline EpilogueActivation read_activation(const std::string& name) {
  if (name == "none") return EpilogueActivation::none;
  if (name == "gelu") return EpilogueActivation::gelu;
  STD_TORCH_CHECK(name == "gelu_tanh", "linear: activation must be none, gelu or gelu_tanh, got ", name);
  return EpilogueActivation::gelu_tanh;
}

// The `approximate` argument of torch's gelu.
inline std::string approximate_of(EpilogueActivation activation) {
  return activation == EpilogueActivation::gelu_tanh ? "tanh" : "none";
}

inline std::vector<int64_t> linear_sizes(const Tensor& x, const Tensor& weight) {
  return with_last(x, weight.size(0));
}

inline void check_linear_weight(const Tensor& x, const Tensor& weight) {
  check_tensor("linear", "x", x);
  STD_TORCH_CHECK(x.dim() > 0, "linear: x must have at least one dimension");
  STD_TORCH_CHECK(weight.dim() == 2, "linear: weight must have two dimensions");
  check_like("linear", "weight", weight, x, {weight.size(0), x.size(-1)});
}

// Applies activation, scale and residual to x weightᵀ + bias by torch operators.
inline Tensor finish_by_torch(const LinearCall& call, const Tensor& pre_activation) {
  Tensor y = pre_activation;
  if (call.activation != EpilogueActivation::none) {
    y = call_torch("aten::gelu", "", y, approximate_of(call.activation));
  }
  if (call.scale.has_value()) y = torch_multiply(y, *call.scale);
  if (call.residual.has_value()) y = torch_add(*call.residual, y);
  return as_contiguous(y);
}

// `gemm`: std::optional<LinearResult>(const LinearCall&, bool saves_sum), or nullopt for torch operators.
template <auto gemm>
LinearResult run_linear(const LinearCall& call, bool saves_sum) {
  if (const std::optional<LinearResult> fused = gemm(call, saves_sum)) return *fused;
  const Tensor pre_activation = as_contiguous(torch_linear(call.x, call.weight, call.bias));
  Tensor out = finish_by_torch(call, pre_activation);
  if (call.rounding.has_value()) quantize_float_in_place(out, *call.rounding);
  return {out, saves_sum ? std::optional<Tensor>(pre_activation) : std::nullopt};
}

template <auto gemm>
std::tuple<Tensor, std::optional<Tensor>> linear_forward(
    const Tensor& x,                    // [..., K]
    const Tensor& weight,               // [N, K]
    const std::optional<Tensor>& bias,  // [N]
    std::string activation,
    const std::optional<Tensor>& scale,     // [N]
    const std::optional<Tensor>& residual,  // [..., N]
    std::optional<std::vector<int64_t>> round_result,
    bool save_for_backward) {
  check_linear_weight(x, weight);
  check_like("linear", "bias", bias, x, {weight.size(0)});
  check_like("linear", "scale", scale, x, {weight.size(0)});
  check_like("linear", "residual", residual, x, linear_sizes(x, weight));
  read_fused_rounding("linear", round_result);
  const LinearCall call{x, weight, bias, read_activation(activation), scale, residual, round_result};

  // the gradients of activation and scale need the sum; it is written only then
  const bool saves_sum = save_for_backward && (call.activation != EpilogueActivation::none || scale.has_value());
  const LinearResult result = run_linear<gemm>(call, saves_sum);
  return {result.out, result.sum};
}

// Arguments of the epilogue part of the backward.
struct EpilogueGradientCall {
  const Tensor& grad;                // [rows, N]
  const std::optional<Tensor>& sum;  // [rows, N], where there is an activation or a scale
  EpilogueActivation activation;
  const std::optional<Tensor>& scale;  // [N]
  bool has_bias;
};

struct EpilogueGradients {
  Tensor grad_sum;  // [rows, N]
  std::optional<Tensor> grad_bias, grad_scale;
};

inline EpilogueGradients gradients_by_torch(const EpilogueGradientCall& call) {
  EpilogueGradients result{call.grad, std::nullopt, std::nullopt};
  const bool is_linear = call.activation == EpilogueActivation::none;
  if (call.scale.has_value()) {
    const Tensor y = is_linear ? *call.sum : call_torch("aten::gelu", "", *call.sum, approximate_of(call.activation));
    result.grad_scale = sum_of_rows(torch_multiply(call.grad, y));
    result.grad_sum = torch_multiply(call.grad, *call.scale);
  }
  if (!is_linear) {
    result.grad_sum =
        call_torch("aten::gelu_backward", "", result.grad_sum, *call.sum, approximate_of(call.activation));
  }
  if (call.has_bias) result.grad_bias = sum_of_rows(result.grad_sum);
  return result;
}

// The GEMMs of the backward have no epilogue and use torch's libraries, which are fastest for plain GEMMs.
// `kernel`: std::optional<EpilogueGradients>(const EpilogueGradientCall&), or nullopt for the fallback.
template <auto kernel>
std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> linear_backward(
    const Tensor& grad_out,                       // [..., N]
    const Tensor& x,                              // [..., K]
    const Tensor& weight,                         // [N, K]
    const std::optional<Tensor>& pre_activation,  // [..., N]
    const std::optional<Tensor>& scale,           // [N]
    std::string activation,
    bool has_bias) {
  check_linear_weight(x, weight);
  check_like("linear", "grad_out", grad_out, x, linear_sizes(x, weight));
  check_like("linear", "pre_activation", pre_activation, x, linear_sizes(x, weight));
  check_like("linear", "scale", scale, x, {weight.size(0)});
  const EpilogueActivation kind = read_activation(activation);
  const bool needs_sum = kind != EpilogueActivation::none || scale.has_value();
  STD_TORCH_CHECK(pre_activation.has_value() == needs_sum, "linear_backward: pre_activation is what forward returned");

  const Tensor grad = as_contiguous(as_rows(grad_out));
  const std::optional<Tensor> sum = needs_sum ? std::optional<Tensor>(as_rows(*pre_activation)) : std::nullopt;
  const EpilogueGradientCall call{grad, sum, kind, scale, has_bias};
  const std::optional<EpilogueGradients> fused = kernel(call);
  const EpilogueGradients gradients = fused.has_value() ? *fused : gradients_by_torch(call);
  const Tensor grad_x = reshaped(torch::stable::matmul(gradients.grad_sum, weight), sizes_of(x));
  const Tensor grad_weight = torch::stable::matmul(torch::stable::transpose(gradients.grad_sum, 0, 1), as_rows(x));
  return {grad_x, as_contiguous(grad_weight), gradients.grad_bias, gradients.grad_scale};
}

}  // namespace vitfast
