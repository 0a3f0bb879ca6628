// How raw operators take a rounding to a float format: one list of eight integers, read here and nowhere else.
// vitfast/ops/float_rounding.py writes it.

#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>

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
  float max_value;
  std::memcpy(&max_value, &max_bits, sizeof(max_value));
  const double wide_max_value = max_value;
  uint64_t wide_max_bits;
  std::memcpy(&wide_max_bits, &wide_max_value, sizeof(wide_max_bits));

  const auto make = [&](auto layout, auto max) {
    return make_float_format<decltype(layout)>(
        exponent_bits, mantissa_bits, max, list[3] != 0, list[4] != 0, list[5] != 0, static_cast<Overflow>(overflow));
  };
  return {static_cast<Rounding>(rounding), make(Float32Bits{}, max_bits), make(Float64Bits{}, wide_max_bits)};
}

// A rounding within another operator: an empty list means none.
inline std::optional<FloatRounding> read_fused_rounding(const char* op, const std::vector<int64_t>& list) {
  if (list.empty()) return std::nullopt;
  const FloatRounding rounding = read_float_rounding(op, list);
  STD_TORCH_CHECK(rounding.rounding != Rounding::stochastic, op, ": only quantize_float rounds stochastically");
  return rounding;
}

}  // namespace vitfast
