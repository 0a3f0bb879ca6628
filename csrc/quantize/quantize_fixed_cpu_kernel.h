// Rounding of a range of elements to fixed point.

#pragma once

#include "csrc/common/fixed_format.h"
#include "csrc/cpu/dispatch_type.h"
#include "csrc/quantize/blocks_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

template <typename T, typename C, FixedRounding rounding>
void quantize_fixed_range(const QuantizeFixed& a, int64_t begin, int64_t end) {
  const FixedFormat<C> format = format_of<C>(a.rounding);  // a local copy: stores cannot alias it
  for_each_block<T, C, rounding == FixedRounding::stochastic>(
      a.elements, begin, end, [&](C* values, const uint32_t* random) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; ++i) {
          if constexpr (rounding == FixedRounding::stochastic) {
            values[i] = round_fixed<C, rounding>(values[i], format, random[i]);
          } else {
            values[i] = round_fixed<C, rounding>(values[i], format);
          }
        }
      });
}

void quantize_fixed(const QuantizeFixed& a, int64_t begin, int64_t end) {
  dispatch_type(a.elements.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    switch (a.rounding.rounding) {
      case FixedRounding::nearest_even:
        return quantize_fixed_range<T, C, FixedRounding::nearest_even>(a, begin, end);
      case FixedRounding::nearest_away:
        return quantize_fixed_range<T, C, FixedRounding::nearest_away>(a, begin, end);
      case FixedRounding::toward_zero:
        return quantize_fixed_range<T, C, FixedRounding::toward_zero>(a, begin, end);
      case FixedRounding::stochastic:
        return quantize_fixed_range<T, C, FixedRounding::stochastic>(a, begin, end);
      case FixedRounding::qtorch:
        return quantize_fixed_range<T, C, FixedRounding::qtorch>(a, begin, end);
    }
  });
}

}  // namespace vitfast::VITFAST_ISA
