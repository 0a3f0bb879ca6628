// Decodes the integer lists by which operators take a rounding. Encoded by vitfast/ops/rounding.py and
// vitfast/ops/quantize_fixed.py.

#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "csrc/common/fixed_format.h"
#include "csrc/common/float_format.h"

namespace vitfast {

// Reads [exponent_bits, mantissa_bits, max_value's bits as a float, has_inf, has_nan, signed_zero, overflow, rounding].
inline FloatRounding read_float_rounding(const char* op, const std::vector<int64_t>& list) {
  STD_TORCH_CHECK(list.size() == 8, op, ": a rounding is a list of 8 integers, not of ", list.size());
  const int64_t exponent_bits = list[0], mantissa_bits = list[1], overflow = list[6], rounding = list[7];
  STD_TORCH_CHECK(
      exponent_bits >= 2 && exponent_bits <= 8 && mantissa_bits >= 0 && mantissa_bits <= 23,
      op,
      ": a format has 2 to 8 exponent bits and 0 to 23 mantissa bits");
  STD_TORCH_CHECK(overflow >= 0 && overflow <= 2, op, ": unknown overflow code ", overflow);
  STD_TORCH_CHECK(rounding >= 0 && rounding <= 4, op, ": unknown rounding code ", rounding);
  STD_TORCH_CHECK(
      static_cast<Rounding>(rounding) != Rounding::qtorch || mantissa_bits < 23,
      op,
      ": QPyTorch flips signs where there are 23 mantissa bits");
  STD_TORCH_CHECK(list[2] > 0 && list[2] < 0x7f800000, op, ": max_value must be positive and finite");
  const uint32_t max_bits = uint32_t(list[2]);
  const uint64_t wide_max_bits = bit_cast<uint64_t>(double(bit_cast<float>(max_bits)));

  const auto make = [&](auto layout, auto max) {
    return make_float_format<decltype(layout)>(
        exponent_bits, mantissa_bits, max, list[3] != 0, list[4] != 0, list[5] != 0, static_cast<Overflow>(overflow));
  };
  return {static_cast<Rounding>(rounding), make(Float32Bits{}, max_bits), make(Float64Bits{}, wide_max_bits)};
}

// A rounding fused into another operator.
inline std::optional<FloatRounding> read_fused_rounding(
    const char* op, const std::optional<std::vector<int64_t>>& list) {
  if (!list.has_value()) return std::nullopt;
  const FloatRounding rounding = read_float_rounding(op, *list);
  STD_TORCH_CHECK(rounding.rounding != Rounding::stochastic, op, ": only quantize_float rounds stochastically");
  return rounding;
}

// Reads [word_length, fraction_length, symmetric, overflow, rounding].
inline FixedPointRounding read_fixed_rounding(const char* op, const std::vector<int64_t>& list) {
  STD_TORCH_CHECK(list.size() == 5, op, ": a fixed-point rounding is a list of 5 integers, not of ", list.size());
  STD_TORCH_CHECK(list[0] >= 2 && list[0] <= 24, op, ": word_length must be 2 to 24, not ", list[0]);
  STD_TORCH_CHECK(list[1] >= -64 && list[1] <= 64, op, ": fraction_length must be -64 to 64, not ", list[1]);
  STD_TORCH_CHECK(list[3] >= 0 && list[3] <= 2, op, ": unknown overflow code ", list[3]);
  STD_TORCH_CHECK(list[4] >= 0 && list[4] <= 4, op, ": unknown rounding code ", list[4]);
  const auto overflow = static_cast<FixedOverflow>(list[3]);
  return {
      static_cast<Rounding>(list[4]),
      make_fixed_format<float>(list[0], list[1], list[2] != 0, overflow),
      make_fixed_format<double>(list[0], list[1], list[2] != 0, overflow)};
}

}  // namespace vitfast
