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
    return v == v ? round_to_half(v) : quieted;
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

// Any format and deterministic rounding.
template <Rounding rounding>
struct AnyRounding {
  VITFAST_INLINE Vector<float> operator()(Vector<float> v) const {
    uint32_t bits[width<float>];
    std::memcpy(bits, &v, sizeof(v));
    for (int64_t i = 0; i < width<float>; ++i) bits[i] = round_bits<Float32Bits, rounding>(bits[i], format);
    std::memcpy(&v, bits, sizeof(v));
    return v;
  }

  FloatFormat<Float32Bits> format;
};

// Calls f with a functor that rounds a vector; the rounding must be deterministic.
template <typename F>
VITFAST_INLINE void with_rounding(const FloatRounding& rounding, const F& f) {
  const FloatFormat<Float32Bits>& format = rounding.format32;
  if (rounding.rounding == Rounding::nearest_even) {
#if defined(__F16C__)
    if (is_half(format)) return f(NearestHalf{});
#endif
    if (NearestEven::covers(format)) return f(NearestEven(format));
    return f(AnyRounding<Rounding::nearest_even>{format});
  }
  if (rounding.rounding == Rounding::qtorch) return f(AnyRounding<Rounding::qtorch>{format});
  if (rounding.rounding == Rounding::nearest_away) return f(AnyRounding<Rounding::nearest_away>{format});
  f(AnyRounding<Rounding::toward_zero>{format});
}

// Rounds `count` adjacent numbers in place.
inline void round_row(const FloatRounding& rounding, float* row, int64_t count) {
  with_rounding(rounding, [&](auto round) __attribute__((always_inline)) {
    for_each_vector<float>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_up_to<float>(row + i, round(load_up_to<float>(row + i, n)), n);
    });
  });
}

template <Rounding rounding>
void round_doubles(const FloatFormat<Float64Bits>& format, double* row, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = bit_cast<double>(round_bits<Float64Bits, rounding>(bit_cast<uint64_t>(row[i]), format));
  }
}

inline void round_row(const FloatRounding& rounding, double* row, int64_t count) {
  switch (rounding.rounding) {
    case Rounding::nearest_even:
      return round_doubles<Rounding::nearest_even>(rounding.format64, row, count);
    case Rounding::nearest_away:
    case Rounding::qtorch:
      return round_doubles<Rounding::nearest_away>(rounding.format64, row, count);
    default:
      return round_doubles<Rounding::toward_zero>(rounding.format64, row, count);
  }
}

}  // namespace vitfast::VITFAST_ISA
