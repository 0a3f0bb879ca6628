// Arguments of the packed operators: strings to enums, tensors to pointers.

#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "csrc/cpu/tensors.h"
#include "csrc/packed/packed.h"

namespace vitfast {

inline Precision precision_of(const char* op, const std::string& name) {
  if (name == "fp32") return Precision::float32;
  if (name == "bf16") return Precision::bfloat16;
  if (name == "fp16_32") return Precision::float16;
  STD_TORCH_CHECK(name == "int8", op, ": precision must be fp32, bf16, fp16_32 or int8, got ", name);
  return Precision::int8;
}

inline Activation activation_of(const char* op, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "gelu_quick") return Activation::gelu_quick;
  if (name == "tanh") return Activation::tanh;
  if (name == "silu") return Activation::silu;
  STD_TORCH_CHECK(
      name == "relu", op, ": activation must be none, gelu, gelu_tanh, gelu_quick, tanh, silu or relu, got ", name);
  return Activation::relu;
}

// The data of a contiguous float32 tensor of the given shape, or null.
inline const float* floats_or_null(
    const char* op, const char* name, const std::optional<Tensor>& tensor, const std::vector<int64_t>& sizes) {
  if (!tensor.has_value()) return nullptr;
  if (tensor->scalar_type() == ScalarType::Float && tensor->is_contiguous() && sizes_of(*tensor) == sizes) {
    return static_cast<const float*>(tensor->const_data_ptr());
  }
  std::string shape;
  for (const int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, op, ": ", name, " must be contiguous float32 of shape [", shape, "]");
}

// The data of a contiguous int64 tensor with elements in [least, limit).
inline const int64_t* indices_of(
    const char* op, const char* name, const Tensor& tensor, int64_t dims, int64_t least, int64_t limit) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == ScalarType::Long && tensor.dim() == dims && tensor.is_contiguous() && tensor.numel() > 0,
      op,
      ": ",
      name,
      " must be contiguous int64 of ",
      dims,
      " dimensions");
  const auto* data = static_cast<const int64_t*>(tensor.const_data_ptr());
  const auto [smallest, largest] = std::minmax_element(data, data + tensor.numel());
  STD_TORCH_CHECK(
      *smallest >= least && *largest < limit, op, ": ", name, " must be at least ", least, " and below ", limit);
  return data;
}

inline PackedHeader header_of(const Tensor& packed) {
  PackedHeader header;
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  return header;
}

// `packed` must live as long as the result.
inline PackedWeight packed_weight(
    const char* op,
    const char* name,
    const Tensor& packed,
    int64_t n,
    int64_t k,
    Precision precision,
    const std::optional<Tensor>& bias) {
  const bool is_small = n >= 0 && k >= 0 && (k == 0 || n <= max_elements / k);
  const bool is_packed = is_small && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                         packed.numel() == packed_bytes(precision, n, k) &&
                         PackedHeader{precision, n, k} == header_of(packed);
  STD_TORCH_CHECK(
      is_packed, op, ": ", name, " is not a weight [", n, ", ", k, "] that pack_weight packed for this precision");
  const char* panels = static_cast<const char*>(packed.const_data_ptr()) + packed_header;
  return {precision, panels, n, k, floats_or_null(op, "bias", bias, {n})};
}

// The gate of an MLP; without panels if it has none.
inline PackedWeight gate_of(
    const char* op,
    const std::optional<Tensor>& gate,
    const std::optional<Tensor>& bias,
    int64_t hidden,
    int64_t k,
    Precision precision) {
  return gate.has_value() ? packed_weight(op, "gate", *gate, hidden, k, precision, bias) : PackedWeight{};
}

// A tensor [..., K] as rows: itself where its rows are one stride apart, else a copy.
struct RowsTensor {
  RowsTensor(const char* op, const Tensor& x) : tensor(x) {
    STD_TORCH_CHECK(
        x.dim() > 0 && (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16),
        op,
        ": x must be float32 or bfloat16 of at least one dimension");
    k = x.size(-1);
    count = 1;
    for (int64_t d = 0; d + 1 < x.dim(); ++d) count *= x.size(d);
    stride = k;
    if (!x.is_contiguous() && !has_one_stride()) {
      tensor = torch::stable::contiguous(x);
      stride = k;
    }
  }
  Rows rows() const { return {type_of(tensor), tensor.const_data_ptr(), stride}; }

  Tensor tensor;
  int64_t count, k, stride;

 private:
  bool has_one_stride() {
    if (k > 1 && tensor.stride(-1) != 1) return false;
    int64_t rows = 1;
    for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
      if (tensor.size(d) == 1) continue;
      if (rows == 1) stride = tensor.stride(d);
      if (tensor.stride(d) != stride * rows) return false;
      rows *= tensor.size(d);
    }
    return true;
  }
};

inline Norm norm_of(
    const char* op,
    const std::optional<Tensor>& gamma,
    const std::optional<Tensor>& beta,
    std::optional<double> eps,  // none: no LayerNorm
    int64_t size) {
  STD_TORCH_CHECK(
      eps.has_value() || (!gamma.has_value() && !beta.has_value()), op, ": gamma and beta need eps, the LayerNorm's");
  return {
      eps.has_value(),
      floats_or_null(op, "gamma", gamma, {size}),
      floats_or_null(op, "beta", beta, {size}),
      eps.value_or(0)};
}

}  // namespace vitfast
