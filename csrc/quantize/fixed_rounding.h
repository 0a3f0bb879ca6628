// How raw operators take a rounding to fixed point: one list of five integers, read here and nowhere else.
// vitfast/ops/quantize_fixed.py writes it.

#pragma once

#include <vector>

#include <torch/csrc/stable/library.h>

#include "csrc/common/fixed_format.h"

namespace vitfast {

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
