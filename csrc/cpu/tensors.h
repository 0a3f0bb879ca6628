// Checks, allocation and conversions that the CPU operators share, on the stable tensor. The Python functions check
// first and with friendlier words; these checks are the backstop for whoever calls torch.ops.vitfast directly.

#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "csrc/cpu/kernels.h"

namespace vitfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool has_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      return Type::float64;
  }
}

// The type that kernels compute in.
inline ScalarType computing_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(has_type(tensor.scalar_type()), op, ": ", name, " must be float32, bfloat16, float16 or float64");
}

inline void check_same_type(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  check_tensor(op, name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " has another dtype than the input");
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline void check_sizes(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(sizes_of(tensor) == expected, op, ": ", name, " has a wrong shape");
}

inline int32_t aoti_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    default:
      return aoti_torch_dtype_float64();
  }
}

// A contiguous, uninitialized tensor on the CPU, made without a pass through the dispatcher, which would cost
// microseconds.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(), aoti_type(type), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_tensor(sizes, like.scalar_type());
}

inline Tensor new_zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()}, type);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// A contiguous parameter in the computing type, or nothing.
inline std::optional<Tensor> parameter(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor.has_value()) return std::nullopt;
  return as_contiguous(as_type(*tensor, type));
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline void* mutable_data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->mutable_data_ptr() : nullptr;
}

// Splits [0, count) among the threads; `work` is about how many elements one of them touches.
template <typename F>
void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t worthwhile = 16384;  // elements below which another thread costs more than it saves
  const int64_t grain = work >= worthwhile ? 1 : worthwhile / (work > 0 ? work : 1);
  if (count > 0) torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace vitfast
