// Checks, allocation and conversions shared by the operators. The Python functions validate first, with more detailed
// messages; these checks protect direct calls of torch.ops.vitfast.

#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <unistd.h>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "csrc/common/types.h"

namespace vitfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// The type in which kernels compute.
inline ScalarType computing_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  const bool is_supported = type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
                            type == ScalarType::Double;
  STD_TORCH_CHECK(is_supported, op, ": ", name, " must be float32, bfloat16, float16 or float64");
}

inline bool is_on_device_of(const Tensor& tensor, const Tensor& like) {
  return tensor.is_cuda() == like.is_cuda() &&
         (!like.is_cuda() || tensor.get_device_index() == like.get_device_index());
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline std::vector<int64_t> with_last(const Tensor& x, int64_t last) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = last;
  return sizes;
}

inline void check_sizes(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(sizes_of(tensor) == expected, op, ": ", name, " has a wrong shape");
}

constexpr int64_t max_elements = int64_t(1) << 48;

// Reports a tensor beyond the machine's memory: the error of torch's allocator lists pages of C++ frames.
inline void check_fits_memory(int64_t elements, ScalarType type) {
  const bool is_wide = type == ScalarType::Double || type == ScalarType::Long;
  const bool is_half = type == ScalarType::BFloat16 || type == ScalarType::Half;
  const double bytes = double(elements) * (is_wide ? 8 : is_half ? 2 : type == ScalarType::Byte ? 1 : 4);
  static const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGE_SIZE));
  STD_TORCH_CHECK(
      bytes <= memory, "a tensor of ", int64_t(bytes / (1 << 30)), " GiB does not fit this machine's memory");
}

// Allocates an uninitialized contiguous CPU tensor. Bypasses the dispatcher, which would cost microseconds.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    const int64_t size = sizes[i] > 1 ? sizes[i] : 1;
    STD_TORCH_CHECK(size <= max_elements / stride, "a result is too large");
    stride *= size;
  }
  check_fits_memory(stride, type);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Allocates an uninitialized contiguous tensor on the device of `like`.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  if (like.is_cuda()) return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
  return new_tensor(sizes, type);
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

// A tensor of a supported dtype and the given shape on the device of `like`.
inline void check_beside(
    const char* op, const char* name, const Tensor& tensor, const Tensor& like, const std::vector<int64_t>& sizes) {
  check_tensor(op, name, tensor);
  STD_TORCH_CHECK(is_on_device_of(tensor, like), op, ": ", name, " is on another device than the input");
  check_sizes(op, name, tensor, sizes);
}

// The same with the dtype of `like`, too; an absent tensor passes.
inline void check_like(
    const char* op, const char* name, const Tensor& tensor, const Tensor& like, const std::vector<int64_t>& sizes) {
  check_beside(op, name, tensor, like, sizes);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " has another dtype than the input");
}

inline void check_like(
    const char* op,
    const char* name,
    const std::optional<Tensor>& tensor,
    const Tensor& like,
    const std::vector<int64_t>& sizes) {
  if (tensor.has_value()) check_like(op, name, *tensor, like, sizes);
}

// All sizes but the last, and their product.
inline std::vector<int64_t> rows_shape(const Tensor& x) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.pop_back();
  return sizes;
}

inline int64_t count_rows(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t size : rows_shape(x)) rows *= size;
  return rows;
}

inline Tensor new_zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()}, type);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  if (tensor.is_cpu()) check_fits_memory(tensor.numel(), tensor.scalar_type());
  return torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

inline Tensor sum_of_rows(const Tensor& rows, bool keepdim = false) {
  const std::vector<int64_t> dimensions{0};
  return torch::stable::sum(rows, torch::headeronly::IntHeaderOnlyArrayRef(dimensions.data(), 1), keepdim);
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
