// What the CPU and the CUDA side of quantize_float share: from the operator's arguments to the formats of the rounding.

#pragma once

#include <cstring>

#include <torch/csrc/stable/library.h>

#include "csrc/common/float_format.h"

namespace vitfast {

// Describes the format in the terms of `Layout`; checks the raw arguments.
template <typename Layout>
FloatFormat<Layout> float_format_from_arguments(
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow) {
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

inline Rounding rounding_from_argument(int64_t rounding, bool has_seed) {
  STD_TORCH_CHECK(rounding >= 0 && rounding <= 3, "quantize_float: unknown rounding code ", rounding);
  STD_TORCH_CHECK(
      static_cast<Rounding>(rounding) != Rounding::stochastic || has_seed,
      "quantize_float: stochastic rounding needs a seed");
  return static_cast<Rounding>(rounding);
}

}  // namespace vitfast
