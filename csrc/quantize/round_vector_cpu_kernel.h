// Rounding of float vectors to a narrower float format; the implementation is selected once for many vectors.

#pragma once

#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

#if defined(__F16C__)

// True for IEEE half with all of its special values: the only format with a conversion instruction.
inline bool is_half(const FloatFormat<Float32Bits>& format) {
  const FloatFormat<Float32Bits> half =
      make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
  return std::memcmp(&format, &half, sizeof(half)) == 0;
}

struct NearestHalf {
  VITFAST_INLINE Vector<float> operator()(Vector<float> v) const {
    const Vector<float> quieted = bit_cast<Vector<float>>(bit_cast<Words>(v) | 0x00400000);
    return v == v ? from_halves(to_halves(v)) : quieted;
  }
};

#endif

// Same results as round_bits with ties to even, in half the instructions: normal values are rounded by integer
// arithmetic on their bits, subnormal values by adding and subtracting a number whose ulp is the subnormal spacing.
struct NearestEven {
  explicit NearestEven(const FloatFormat<Float32Bits>& f)
      : format(f),
        half_less_one((1u << (f.dropped_bits - 1)) - 1),
        kept_bits(~((1u << f.dropped_bits) - 1)),
        min_normal_bits(f.min_exponent << 23),
        spacing(bit_cast<float>((f.min_exponent + f.dropped_bits) << 23)) {}

  // Formats without mantissa bits resolve ties by the exponent; formats with all of float's need no rounding.
  static bool covers(const FloatFormat<Float32Bits>& f) { return f.dropped_bits > 0 && f.code_parity == 0; }

  VITFAST_INLINE Vector<float> operator()(Vector<float> v) const {
    using Ints = Integers<float>;
    const Words bits = bit_cast<Words>(v);
    const Words magnitude = bits & 0x7fffffffu;
    const Words odd = (magnitude >> format.dropped_bits) & 1u;
    const Words normal = (magnitude + odd + half_less_one) & kept_bits;
    const Vector<float> absolute = bit_cast<Vector<float>>(magnitude);
    const Words subnormal = bit_cast<Words>((absolute + spacing) - spacing);
    const Ints compared = bit_cast<Ints>(magnitude);  // no sign bit, so signed comparison is valid
    Words rounded = compared < min_normal_bits ? subnormal : normal;
    rounded = bit_cast<Ints>(rounded) > int32_t(format.max_bits) ? format.overflow_bits - Words{} : rounded;
    rounded = compared == int32_t(Float32Bits::infinity) ? format.infinity_bits - Words{} : rounded;
    const Words sign_mask = rounded == 0u ? format.zero_sign_mask - Words{} : 0x80000000u - Words{};
    const Words number = rounded | (bits & sign_mask);
    const Words nan = (bits & format.nan_and_mask) | format.nan_or_mask;
    return bit_cast<Vector<float>>(compared > int32_t(Float32Bits::infinity) ? nan : number);
  }

  FloatFormat<Float32Bits> format;
  uint32_t half_less_one;
  uint32_t kept_bits;
  int32_t min_normal_bits;
  float spacing;
};

template <typename C, Rounding rounding>
struct RoundFloat {
  using Layout = std::conditional_t<sizeof(C) == 4, Float32Bits, Float64Bits>;
  VITFAST_INLINE C operator()(C value, uint32_t random = 0) const {
    return bit_cast<C>(round_bits<Layout, rounding>(bit_cast<typename Layout::Bits>(value), format, random));
  }

  FloatFormat<Layout> format;
};

// Rounds a vector element by element, in a loop that the compiler vectorizes.
template <typename C, typename Round>
struct EachElement {
  VITFAST_INLINE Vector<C> operator()(Vector<C> v) const {
    C values[width<C>];
    store(values, v);
    for (int64_t i = 0; i < width<C>; ++i) values[i] = round(values[i]);
    return load(values);
  }

  Round round;
};

// Calls f with a functor that rounds a vector; the rounding must be deterministic. In float64, where QPyTorch has no
// rounding, its ties are rounded away from zero.
template <typename C, typename F>
VITFAST_INLINE void with_rounding(const FloatRounding& rounding, const F& f) {
  const auto& format = format_of<C>(rounding);
  if constexpr (sizeof(C) == sizeof(float)) {
    if (rounding.rounding == Rounding::nearest_even) {
#if defined(__F16C__)
      if (is_half(format)) return f(NearestHalf{});
#endif
      if (NearestEven::covers(format)) return f(NearestEven(format));
    }
  }
  using R = Rounding;
  with_constant<R::nearest_even, R::nearest_away, R::toward_zero, R::qtorch>(
      rounding.rounding, [&](auto rule) __attribute__((always_inline)) {
        using Round = RoundFloat<C, rule>;
        f(EachElement<C, Round>{{format}});
      });
}

// Rounds `count` adjacent numbers in place.
template <typename C>
void round_row(const FloatRounding& rounding, C* row, int64_t count) {
  with_rounding<C>(rounding, [&](auto round) __attribute__((always_inline)) {
    for_each_vector<C>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_up_to<C>(row + i, round(load_up_to<C>(row + i, n)), n);
    });
  });
}

}  // namespace vitfast::VITFAST_ISA
