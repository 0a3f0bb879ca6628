// Rounding of a range of elements to a narrower float format.

#pragma once

#include "csrc/cpu/dispatch_type.h"
#include "csrc/quantize/blocks_cpu_kernel.h"

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

#if defined(__F16C__)

// True for IEEE half with all of its special values: the one format that processors convert to.
inline bool is_half(const FloatFormat<Float32Bits>& format) {
  const FloatFormat<Float32Bits> half =
      make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
  return std::memcmp(&format, &half, sizeof(half)) == 0;
}

// The same bits as quantize_float_range for half and the nearest even number, at the speed of memory.
inline void quantize_to_half(const QuantizeFloat& a, int64_t begin, int64_t end) {
  for_each_block<float, float, false>(
      a.elements, begin, end, [&](float* values, const uint32_t*) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; i += width<float>) {
          const Vector<float> v = load(values + i);
          const Vector<float> quieted = bit_cast<Vector<float>>(bit_cast<Words>(v) | 0x00400000);
          store(values + i, v == v ? round_to_half(v) : quieted);
        }
      });
}

#endif

template <typename T, typename Layout>
void quantize_float_typed(const QuantizeFloat& a, int64_t begin, int64_t end) {
  switch (a.rounding.rounding) {
    case Rounding::nearest_even:
      return quantize_float_range<T, Layout, Rounding::nearest_even>(a, begin, end);
    case Rounding::nearest_away:
      return quantize_float_range<T, Layout, Rounding::nearest_away>(a, begin, end);
    case Rounding::toward_zero:
      return quantize_float_range<T, Layout, Rounding::toward_zero>(a, begin, end);
    case Rounding::stochastic:
      return quantize_float_range<T, Layout, Rounding::stochastic>(a, begin, end);
  }
}

void quantize_float(const QuantizeFloat& a, int64_t begin, int64_t end) {
  switch (a.elements.type) {
    case Type::float32:
#if defined(__F16C__)
      if (a.rounding.rounding == Rounding::nearest_even && is_half(a.rounding.format32)) {
        return quantize_to_half(a, begin, end);
      }
#endif
      return quantize_float_typed<float, Float32Bits>(a, begin, end);
    case Type::bfloat16:
      return quantize_float_typed<BFloat16, Float32Bits>(a, begin, end);
    case Type::float16:
      return quantize_float_typed<Half, Float32Bits>(a, begin, end);
    case Type::float64:
      return quantize_float_typed<double, Float64Bits>(a, begin, end);
  }
}

}  // namespace vitfast::VITFAST_ISA
