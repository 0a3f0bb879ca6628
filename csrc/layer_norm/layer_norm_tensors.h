// LayerNorm on tensors: checks and allocation. A Device provides
//
//     static std::tuple<std::optional<Tensor>, std::optional<Tensor>, Type> parameters(
//         const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& x);   // of one type
//     static void check(const char* op, ScalarType stream, ScalarType branch, int64_t channels);   // what is supported
//     static Tensor rows(const Tensor&);                      // as the kernels read them
//     static Tensor partial(const Tensor& like, const std::vector<int64_t>& sizes);   // for backward's partial sums
//     static Tensor sum(const Tensor& partial);               // of their rows
//     static void forward(const LayerNormForward&, const Tensor& like);
//     static void backward(const LayerNormBackward&, const Tensor& like);
//     static constexpr int64_t max_chunks, min_rows_per_chunk;   // of rows, for the gradients of the parameters

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/layer_norm/layer_norm.h"
#include "csrc/quantize/rounding_arguments.h"

namespace vitfast {

inline void check_layer_norm_parameter(const char* name, const std::optional<Tensor>& tensor, const Tensor& x) {
  if (tensor.has_value()) check_beside("layer_norm", name, *tensor, x, {x.size(-1)});
}

template <typename Device>
std::optional<Tensor> rows_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(Device::rows(*tensor)) : std::nullopt;
}

// `branch`: the dtype of y.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_layer_norm_forward(
    const Tensor& x,                        // [..., C]
    const std::optional<Tensor>& residual,  // [..., C]
    ScalarType branch,
    const std::optional<Tensor>& weight,  // [C]
    const std::optional<Tensor>& bias,    // [C]
    double eps,
    const std::optional<std::vector<int64_t>>& round_sum,
    const std::optional<std::vector<int64_t>>& round_operand,
    const std::optional<std::vector<int64_t>>& round_result) {
  check_tensor("layer_norm", "x", x);
  STD_TORCH_CHECK(x.dim() > 0, "layer_norm: x must have at least one dimension");
  check_layer_norm_parameter("weight", weight, x);
  check_layer_norm_parameter("bias", bias, x);
  STD_TORCH_CHECK(eps >= 0, "layer_norm: eps must be zero or positive");
  const Tensor& stream = residual.has_value() ? *residual : x;
  Device::check("layer_norm", stream.scalar_type(), branch, x.size(-1));
  const ScalarType computing = computing_type(stream);
  const Tensor x_rows = Device::rows(x);
  const std::optional<Tensor> residual_rows = rows_or_none<Device>(residual);
  const auto [weight_c, bias_c, parameter_type] = Device::parameters(weight, bias, stream);

  const auto sum_rounding = read_fused_rounding("layer_norm", round_sum);
  const auto operand_rounding = read_fused_rounding("layer_norm", round_operand);
  const auto result_rounding = read_fused_rounding("layer_norm", round_result);
  const auto pointer = [](const std::optional<FloatRounding>& r) { return r.has_value() ? &*r : nullptr; };

  const Tensor y = new_tensor(x, sizes_of(x), branch);
  const Tensor summed = residual.has_value() ? new_tensor(stream, sizes_of(x)) : y;
  const Tensor mean = new_tensor(x, rows_shape(x), computing);
  const Tensor rstd = new_tensor(x, rows_shape(x), computing);
  const LayerNormForward arguments{
      type_of(stream),
      type_of(y),
      parameter_type,
      x_rows.const_data_ptr(),
      data_or_null(residual_rows),
      data_or_null(weight_c),
      data_or_null(bias_c),
      summed.mutable_data_ptr(),
      y.mutable_data_ptr(),
      mean.mutable_data_ptr(),
      rstd.mutable_data_ptr(),
      x.size(-1),
      count_rows(x),
      eps,
      pointer(sum_rounding),
      pointer(operand_rounding),
      pointer(result_rounding)};
  if (x.numel() > 0) Device::forward(arguments, x);
  return {summed, y, mean, rstd};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(
    const Tensor& x,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    double eps,
    std::optional<std::vector<int64_t>> round_operand,
    std::optional<std::vector<int64_t>> round_result,
    std::optional<ScalarType> out_dtype) {
  auto [summed, y, mean, rstd] = run_layer_norm_forward<Device>(
      x,
      std::nullopt,
      out_dtype.value_or(x.scalar_type()),
      weight,
      bias,
      eps,
      std::nullopt,
      round_operand,
      round_result);
  return {y, mean, rstd};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_forward(
    const Tensor& x,
    const Tensor& residual,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    double eps,
    std::optional<std::vector<int64_t>> round_sum,
    std::optional<std::vector<int64_t>> round_operand,
    std::optional<std::vector<int64_t>> round_result) {
  check_beside("add_layer_norm", "residual", residual, x, sizes_of(x));
  return run_layer_norm_forward<Device>(
      x, residual, x.scalar_type(), weight, bias, eps, round_sum, round_operand, round_result);
}

template <typename Device>
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> layer_norm_backward(
    const Tensor& grad_y,                      // [..., C]
    const std::optional<Tensor>& grad_summed,  // [..., C]
    const Tensor& x,                           // [..., C]
    const Tensor& mean,                        // [...]
    const Tensor& rstd,                        // [...]
    const std::optional<Tensor>& weight,       // [C]
    bool has_bias) {
  const char* op = "layer_norm_backward";
  check_tensor(op, "x", x);
  STD_TORCH_CHECK(x.dim() > 0, op, ": x must have at least one dimension");
  check_beside(op, "grad_y", grad_y, x, sizes_of(x));
  Device::check(op, x.scalar_type(), grad_y.scalar_type(), x.size(-1));
  check_like(op, "grad_summed", grad_summed, x, sizes_of(x));
  check_layer_norm_parameter("weight", weight, x);
  const ScalarType computing = computing_type(x);
  for (const auto& [name, statistic] : {std::pair("mean", mean), std::pair("rstd", rstd)}) {
    STD_TORCH_CHECK(is_on_device_of(statistic, x), op, ": ", name, " is on another device than x");
    check_sizes(op, name, statistic, rows_shape(x));
    STD_TORCH_CHECK(statistic.scalar_type() == computing, op, ": ", name, " has a wrong dtype");
  }

  const int64_t channels = x.size(-1), rows = count_rows(x);
  const int64_t rows_per_chunk = split_rows(rows, Device::max_chunks, Device::min_rows_per_chunk);
  const int64_t chunks = ceil_div(rows, rows_per_chunk);

  const Tensor x_rows = Device::rows(x), grad_rows = Device::rows(grad_y);
  const std::optional<Tensor> grad_summed_rows = rows_or_none<Device>(grad_summed);
  const Tensor mean_rows = as_contiguous(mean), rstd_rows = as_contiguous(rstd);
  const auto [weight_c, no_bias, parameter_type] = Device::parameters(weight, std::nullopt, x);
  const Tensor grad_x = new_tensor(x, sizes_of(x));
  std::optional<Tensor> partial_weight, partial_bias;
  if (weight.has_value()) partial_weight = Device::partial(x, {chunks, channels});
  if (has_bias) partial_bias = Device::partial(x, {chunks, channels});

  const LayerNormBackward arguments{
      type_of(x),
      type_of(grad_y),
      parameter_type,
      grad_rows.const_data_ptr(),
      data_or_null(grad_summed_rows),
      x_rows.const_data_ptr(),
      mean_rows.const_data_ptr(),
      rstd_rows.const_data_ptr(),
      data_or_null(weight_c),
      grad_x.mutable_data_ptr(),
      mutable_data_or_null(partial_weight),
      mutable_data_or_null(partial_bias),
      channels,
      rows,
      rows_per_chunk};
  if (x.numel() > 0) Device::backward(arguments, x);

  const auto over_chunks = [](const std::optional<Tensor>& partial) -> std::optional<Tensor> {
    return partial.has_value() ? std::optional<Tensor>(Device::sum(*partial)) : std::nullopt;
  };
  return {grad_x, over_chunks(partial_weight), over_chunks(partial_bias)};
}

}  // namespace vitfast
