// torch operators called through the stable ABI: the fallback of linear, and parts of its gradients.

#pragma once

#include <array>
#include <string>

#include "csrc/common/tensors.h"

namespace vitfast {

template <typename... Arguments>
Tensor call_torch(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// x wᵀ + b. A contiguous weight makes the summation order independent of its strides.
inline Tensor torch_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return call_torch("aten::linear", "", x, as_contiguous(weight), bias);
}

inline Tensor torch_multiply(const Tensor& a, const Tensor& b) {
  return call_torch("aten::mul", "Tensor", a, b);
}

inline Tensor torch_add(const Tensor& a, const Tensor& b) {
  return torch::stable::subtract(a, b, -1.0);  // the stable ABI has no add
}

// Calls the registered operator on the tensor's device.
inline void quantize_float_in_place(const Tensor& x, const std::vector<int64_t>& rounding) {
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(x),
      torch::stable::detail::from(rounding),
      torch::stable::detail::from(std::optional<Tensor>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("vitfast::quantize_float_", "", stack.data(), TORCH_ABI_VERSION));
}

inline Tensor reshaped(const Tensor& x, const std::vector<int64_t>& sizes) {
  return torch::stable::reshape(x, {sizes.data(), sizes.size()});
}

inline Tensor as_rows(const Tensor& x) {
  return reshaped(x, {count_rows(x), x.size(-1)});
}

}  // namespace vitfast
