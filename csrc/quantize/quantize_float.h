// What the CPU and the CUDA side of quantize_float share: the operator's arguments, their checks, and its two forms.

#pragma once

#include <cstring>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "csrc/common/float_format.h"

namespace vitfast {

// The raw operator's arguments behind x.
struct QuantizeFloatArguments {
  int64_t exponent_bits;
  int64_t mantissa_bits;
  double max_value;
  bool has_inf;
  bool has_nan;
  bool signed_zero;
  int64_t overflow;
  int64_t rounding;
  const std::optional<torch::stable::Tensor>& seed;

  // Describes the format in the terms of `Layout`.
  template <typename Layout>
  FloatFormat<Layout> checked_format() const {
    STD_TORCH_CHECK(
        exponent_bits >= 2 && exponent_bits <= 8 && mantissa_bits >= 0 && mantissa_bits <= 23,
        "quantize_float: a format has 2 to 8 exponent bits and 0 to 23 mantissa bits");
    STD_TORCH_CHECK(overflow >= 0 && overflow <= 2, "quantize_float: unknown overflow code ", overflow);
    const auto max = static_cast<typename Layout::Float>(max_value);
    STD_TORCH_CHECK(max > 0 && max <= 0x1.fffffep127, "quantize_float: max_value must be positive and finite");
    typename Layout::Bits max_bits;
    std::memcpy(&max_bits, &max, sizeof(max_bits));
    return make_float_format<Layout>(
        exponent_bits, mantissa_bits, max_bits, has_inf, has_nan, signed_zero, static_cast<Overflow>(overflow));
  }

  Rounding checked_rounding() const {
    STD_TORCH_CHECK(rounding >= 0 && rounding <= 3, "quantize_float: unknown rounding code ", rounding);
    STD_TORCH_CHECK(
        static_cast<Rounding>(rounding) != Rounding::stochastic || seed.has_value(),
        "quantize_float: stochastic rounding needs a seed");
    return static_cast<Rounding>(rounding);
  }
};

// The operator and its in-place twin on a device:
//
//     static Tensor empty_like(const Tensor& x);  contiguous
//     static void quantize(const Tensor& x, const Tensor& y, const QuantizeFloatArguments&);
//                                                 rounds the contiguous x into the contiguous y, which may be x itself
template <typename Device>
torch::stable::Tensor quantize_float(
    const torch::stable::Tensor& x,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow,
    int64_t rounding,
    const std::optional<torch::stable::Tensor>& seed) {
  const torch::stable::Tensor y = Device::empty_like(x);
  Device::quantize(
      x.is_contiguous() ? x : torch::stable::contiguous(x),
      y,
      {exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow, rounding, seed});
  return y;
}

template <typename Device>
void quantize_float_(
    torch::stable::Tensor x,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow,
    int64_t rounding,
    const std::optional<torch::stable::Tensor>& seed) {
  const torch::stable::Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  Device::quantize(
      rows, rows, {exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow, rounding, seed});
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace vitfast
