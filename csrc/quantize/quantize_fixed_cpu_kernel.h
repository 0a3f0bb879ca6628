// Rounding of a range of elements to fixed point.

#pragma once

#include "csrc/common/fixed_format.h"
#include "csrc/cpu/dispatch_type.h"
#include "csrc/quantize/blocks_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

template <typename T, typename C, Rounding rounding, bool wraps>
void quantize_fixed_range(const QuantizeFixed& a, int64_t begin, int64_t end) {
  const FixedFormat<C> format = format_of<C>(a.rounding);  // a local copy: stores cannot alias it
  for_each_block<T, C, rounding == Rounding::stochastic>(
      a.elements, begin, end, [&](C* values, const uint32_t* random) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; ++i) {
          if constexpr (rounding == Rounding::stochastic) {
            values[i] = round_fixed<C, rounding, wraps>(values[i], format, random[i]);
          } else {
            values[i] = round_fixed<C, rounding, wraps>(values[i], format);
          }
        }
      });
}

// Whether numbers wrap is decided outside of the loop, which the compiler would not vectorize otherwise.
template <typename T, typename C, Rounding rounding>
void quantize_fixed_bounded(const QuantizeFixed& a, int64_t begin, int64_t end) {
  format_of<C>(a.rounding).wraps ? quantize_fixed_range<T, C, rounding, true>(a, begin, end)
                                 : quantize_fixed_range<T, C, rounding, false>(a, begin, end);
}

void quantize_fixed(const QuantizeFixed& a, int64_t begin, int64_t end) {
  dispatch_type(a.elements.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    with_rule(a.rounding.rounding, [&](auto rule) { quantize_fixed_bounded<T, C, rule>(a, begin, end); });
  });
}

}  // namespace vitfast::VITFAST_ISA
