#include "csrc/cpu/tensors.h"

namespace vitfast {
namespace {

std::tuple<Tensor, Tensor, Tensor> merge_tokens(
    const Tensor& x,                     // [B, N, C]
    const Tensor& keys,                  // [B, N, H, D]
    const std::optional<Tensor>& sizes,  // [B, N]
    int64_t count,
    int64_t prefix) {
  STD_TORCH_CHECK(
      x.dim() == 3 && x.scalar_type() == ScalarType::Float && keys.scalar_type() == ScalarType::Float,
      "merge_tokens: x must be float32 [B, N, C], and keys float32");
  const int64_t images = x.size(0), tokens = x.size(1), channels = x.size(2);
  STD_TORCH_CHECK(
      keys.dim() == 4 && keys.size(0) == images && keys.size(1) == tokens && keys.size(2) > 0 && keys.size(3) > 0,
      "merge_tokens: keys must be [B, N, H, D] with the B and N of x, H and D at least 1");
  STD_TORCH_CHECK(
      count > 0 && prefix >= 0 && count <= (tokens - prefix) / 2,
      "merge_tokens: count must be from 1 to (N - prefix) / 2");
  if (sizes.has_value()) check_sizes("merge_tokens", "sizes", *sizes, {images, tokens});
  const Tensor rows = as_contiguous(x);
  const bool has_rows = keys.stride(3) == 1 && keys.stride(2) == keys.size(3);  // as within q, k and v
  const Tensor key_rows = has_rows ? keys : as_contiguous(keys);
  const std::optional<Tensor> old_sizes = parameter(sizes, ScalarType::Float);
  const Tensor out = new_tensor(x, {images, tokens - count, channels});
  const Tensor new_sizes = new_tensor(x, {images, tokens - count});
  const Tensor places = new_tensor({images, tokens}, ScalarType::Long);
  const MergeTokens a{
      static_cast<const float*>(rows.const_data_ptr()),
      Type::float32,
      key_rows.const_data_ptr(),
      key_rows.stride(0),
      key_rows.stride(1),
      old_sizes.has_value() ? static_cast<const float*>(old_sizes->const_data_ptr()) : nullptr,
      tokens,
      channels,
      keys.size(2),
      keys.size(3),
      count,
      prefix,
      static_cast<float*>(out.mutable_data_ptr()),
      static_cast<float*>(new_sizes.mutable_data_ptr()),
      static_cast<int64_t*>(places.mutable_data_ptr())};
  parallel(images, tokens * (channels + tokens), cpu_kernels().merge_tokens, a);
  return {out, new_sizes, places};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("merge_tokens", CHECKED_BOX(&merge_tokens));
}

}  // namespace vitfast
