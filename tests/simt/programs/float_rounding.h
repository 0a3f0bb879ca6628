// A rounding to a float format as an option: the eight integers that vitfast/ops/rounding.py encodes, with commas.

#pragma once

#include <cstring>
#include <optional>

#include "csrc/common/float_format.h"
#include "tests/simt/programs/program.h"

namespace simt_test {

inline vitfast::FloatRounding float_rounding(const Program& program, const char* name) {
  int64_t list[8];
  program.integers(name, list, 8);
  const uint32_t max_bits = uint32_t(list[2]);
  float max_value;
  std::memcpy(&max_value, &max_bits, sizeof(max_value));
  const double wide_max_value = max_value;
  uint64_t wide_max_bits;
  std::memcpy(&wide_max_bits, &wide_max_value, sizeof(wide_max_bits));
  const auto make = [&](auto layout, auto max) {
    return vitfast::make_float_format<decltype(layout)>(
        list[0], list[1], max, list[3] != 0, list[4] != 0, list[5] != 0, static_cast<vitfast::Overflow>(list[6]));
  };
  return {
      static_cast<vitfast::Rounding>(list[7]),
      make(vitfast::Float32Bits{}, max_bits),
      make(vitfast::Float64Bits{}, wide_max_bits)};
}

// Where the option may be missing.
inline std::optional<vitfast::FloatRounding> optional_float_rounding(const Program& program, const char* name) {
  if (!program.has(name)) return std::nullopt;
  return float_rounding(program, name);
}

}  // namespace simt_test
