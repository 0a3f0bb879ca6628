// The forward for inference. Where a gradient is needed, and for other widths and types, vitfast/ops/mlp.py calls
// torch.

#include "csrc/common/tensors.h"
#include "csrc/cuda/current_stream.cuh"
#include "csrc/mlp/mlp_launch.cuh"

namespace vitfast {
namespace {

// Rows that can be read 16 bytes at a time.
Tensor as_rows(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  return is_pack_aligned(rows.const_data_ptr()) ? rows : torch::stable::clone(rows);
}

std::optional<Tensor> as_rows_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_rows(*tensor)) : std::nullopt;
}

void check_optional(
    const char* name, const std::optional<Tensor>& tensor, const Tensor& x, const std::vector<int64_t>& sizes) {
  if (!tensor.has_value()) return;
  check_same_type("mlp", name, *tensor, x);
  check_sizes("mlp", name, *tensor, sizes);
}

std::tuple<Tensor, std::optional<Tensor>> mlp_forward(
    const Tensor& x,                        // [..., C]
    const Tensor& fc1_weight,               // [F, C]
    const std::optional<Tensor>& fc1_bias,  // [F]
    const Tensor& fc2_weight,               // [C, F]
    const std::optional<Tensor>& fc2_bias,  // [C]
    const std::optional<Tensor>& residual,  // [..., C]
    std::string approximate,
    bool save_for_backward) {
  const char* op = "mlp";
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Half || type == ScalarType::BFloat16, op, ": the CUDA kernel takes float16 and bfloat16");
  STD_TORCH_CHECK(
      approximate == "none" && !save_for_backward, op, ": the CUDA kernel has the exact GELU and no backward");
  STD_TORCH_CHECK(x.dim() > 0, op, ": x must have at least one dimension");
  check_same_type(op, "fc1_weight", fc1_weight, x);
  check_same_type(op, "fc2_weight", fc2_weight, x);
  const int64_t channels = x.size(-1);
  STD_TORCH_CHECK(fc1_weight.dim() == 2, op, ": fc1_weight must have shape [F, C]");
  const int64_t hidden = fc1_weight.size(0);
  check_sizes(op, "fc1_weight", fc1_weight, {hidden, channels});
  check_sizes(op, "fc2_weight", fc2_weight, {channels, hidden});
  check_optional("fc1_bias", fc1_bias, x, {hidden});
  check_optional("fc2_bias", fc2_bias, x, {channels});
  check_optional("residual", residual, x, sizes_of(x));

  const Tensor x_rows = as_rows(x), fc1_rows = as_rows(fc1_weight), fc2_rows = as_rows(fc2_weight);
  const auto fc1_shift = contiguous_or_none(fc1_bias), fc2_shift = contiguous_or_none(fc2_bias);
  const auto residual_rows = as_rows_or_none(residual);
  const Tensor out = torch::stable::new_empty(x, x.sizes());
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
  type == ScalarType::Half ? launch_mlp<Half>(arguments, stream) : launch_mlp<BFloat16>(arguments, stream);
  return {out, std::nullopt};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("mlp_forward", TORCH_BOX(&mlp_forward));
}

}  // namespace vitfast
