// Rounding of a range of elements to a narrower float format.

#pragma once

#include "csrc/cpu/dispatch_type.h"
#include "csrc/quantize/blocks_cpu_kernel.h"
#include "csrc/quantize/round_vector_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

template <typename T, typename Layout, Rounding rounding>
void quantize_float_range(const QuantizeFloat& a, int64_t begin, int64_t end) {
  using C = typename Layout::Float;
  const FloatFormat<Layout> format = format_of<Layout>(a.rounding);  // a local copy: stores cannot alias it
  for_each_block<T, C, rounding == Rounding::stochastic>(
      a.elements, begin, end, [&](C* values, const uint32_t* random) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; ++i) {
          const auto bits = bit_cast<typename Layout::Bits>(values[i]);
          if constexpr (rounding == Rounding::stochastic) {
            values[i] = bit_cast<C>(round_bits<Layout, rounding>(bits, format, random[i]));
          } else {
            values[i] = bit_cast<C>(round_bits<Layout, rounding>(bits, format));
          }
        }
      });
}

// The same bits for a rounding of whole vectors, at the speed of memory.
template <typename T>
void quantize_float_vectors(const QuantizeFloat& a, int64_t begin, int64_t end) {
  with_rounding(a.rounding, [&](auto round) __attribute__((always_inline)) {
    for_each_stored_vector<T>(a.elements, begin, end, round);
  });
}

// QPyTorch knows no float64: ties go away from zero.
inline void quantize_float_doubles(const QuantizeFloat& a, int64_t begin, int64_t end) {
  with_rule(a.rounding.rounding, [&](auto given) {
    constexpr Rounding rule = given == Rounding::qtorch ? Rounding::nearest_away : given;
    quantize_float_range<double, Float64Bits, rule>(a, begin, end);
  });
}

void quantize_float(const QuantizeFloat& a, int64_t begin, int64_t end) {
  const bool stochastic = a.rounding.rounding == Rounding::stochastic;
  switch (a.elements.type) {
    case Type::float32:
      return stochastic ? quantize_float_range<float, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<float>(a, begin, end);
    case Type::bfloat16:
      return stochastic ? quantize_float_range<BFloat16, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<BFloat16>(a, begin, end);
    case Type::float16:
      return stochastic ? quantize_float_range<Half, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<Half>(a, begin, end);
    case Type::float64:
      return quantize_float_doubles(a, begin, end);
  }
}

}  // namespace vitfast::VITFAST_ISA
