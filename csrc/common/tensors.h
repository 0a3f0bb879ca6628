// Checks and conversions that the operators share, on the stable tensor. The Python functions check first and with
// friendlier words; these checks are the backstop for whoever calls torch.ops.vitfast directly.

#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "csrc/common/types.h"

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

inline int64_t element_size(const Tensor& tensor) {
  switch (type_of(tensor)) {
    case Type::float32:
      return 4;
    case Type::float64:
      return 8;
    default:
      return 2;
  }
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(has_type(tensor.scalar_type()), op, ": ", name, " must be float32, bfloat16, float16 or float64");
}

inline void check_same_type(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  check_tensor(op, name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " has another dtype than the input");
  const bool same_device =
      tensor.is_cuda() == like.is_cuda() && (!like.is_cuda() || tensor.get_device_index() == like.get_device_index());
  STD_TORCH_CHECK(same_device, op, ": ", name, " is on another device than the input");
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline void check_sizes(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(sizes_of(tensor) == expected, op, ": ", name, " has a wrong shape");
}

inline Tensor new_zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()}, type);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline void* mutable_data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->mutable_data_ptr() : nullptr;
}

}  // namespace vitfast
