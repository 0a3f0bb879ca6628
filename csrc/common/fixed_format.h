// Rounding to fixed point, for host and device. Branch-free, so that compilers vectorize loops over it. Scaling by a
// power of two is exact, so the only rounding is the requested one.

#pragma once

#include <cmath>
#include <limits>

#include "csrc/common/float_format.h"

namespace vitfast {

// same codes as in vitfast/ops/rounding.py
enum class FixedOverflow : int64_t { saturate = 0, wrap = 1, unbounded = 2 };

// Precomputed constants of a format. C: float, or double for float64 tensors.
template <typename C>
struct FixedFormat {
  C scale;  // 2^fraction_length
  C step;   // 2^-fraction_length
  C low;    // smallest and largest number of steps; infinite unless overflow saturates
  C high;
  C modulus;  // 2^word_length
  bool wraps;
};

// All numbers from here on are integers.
template <typename C>
constexpr C all_whole = sizeof(C) == 4 ? C(0x1p23) : C(0x1p52);

template <typename C>
VITFAST_HOST_DEVICE C magnitude_of(C value) {
  return value < 0 ? -value : value;
}

// Rounds a magnitude to the nearest integer, ties to even.
template <typename C>
VITFAST_HOST_DEVICE C nearest_whole(C magnitude) {
  return magnitude < all_whole<C> ? (magnitude + all_whole<C>)-all_whole<C> : magnitude;
}

template <typename C>
VITFAST_HOST_DEVICE C truncated(C magnitude) {
  const C nearest = nearest_whole(magnitude);
  return nearest > magnitude ? nearest - 1 : nearest;
}

// Bit-exact QPyTorch 0.3.0 on the CPU: `scaled + 0.5` rounded to float, minus 0.5 in double, rounded to the nearest
// integer. The first sum rounds: 0.5 + 2^-24 becomes 0, and odd numbers from 2^23 on are rounded up.
template <typename C>
VITFAST_HOST_DEVICE C round_as_qtorch(C scaled) {
  const C sum = scaled + C(0.5);
  const C toward_zero = truncated(magnitude_of(sum));
  const C signed_whole = sum < 0 ? -toward_zero : toward_zero;
  const C floor = signed_whole > sum ? signed_whole - 1 : signed_whole;
  // an integer sum is a tie between floor - 1 and floor: take the even one; half of an odd number is no integer
  const C half = magnitude_of(floor) * C(0.5);
  const C rounded = floor == sum && truncated(half) != half ? floor - 1 : floor;
  return rounded == 0 ? (sum < C(0.5) ? C(-0.0) : C(0)) : rounded;
}

// Rounds a scaled value to an integer number of steps. `random`: 31 random bits, used by stochastic rounding only. Only
// qtorch returns -0.
template <typename C, Rounding rounding>
VITFAST_HOST_DEVICE C round_to_whole(C scaled, uint32_t random) {
  if constexpr (rounding == Rounding::qtorch) {
    return round_as_qtorch(scaled);
  } else {
    const C magnitude = magnitude_of(scaled);
    C rounded;
    if constexpr (rounding == Rounding::nearest_even) {
      rounded = nearest_whole(magnitude);
    } else {
      rounded = truncated(magnitude);
      const C fraction = magnitude - rounded;
      if constexpr (rounding == Rounding::nearest_away) rounded = fraction >= C(0.5) ? rounded + 1 : rounded;
      if constexpr (rounding == Rounding::stochastic) {
        // compared in units of 2^-31, as for float formats; infinity and NaN have no fraction
        const C units = fraction < 1 ? fraction * C(0x1p31) : C(0);
        rounded = uint32_t(int32_t(units)) + random >= 0x80000000u ? rounded + 1 : rounded;
      }
    }
    return (scaled < 0 ? -rounded : rounded) + C(0);
  }
}

// Two's complement overflow: the number of steps modulo 2^word_length. Non-finite values become NaN.
template <typename C>
VITFAST_HOST_DEVICE C wrap_around(C steps, C value, const FixedFormat<C>& format) {
  constexpr C all_multiples = sizeof(C) == 4 ? C(0x1p48) : C(0x1p77);  // of 2^24, the largest modulus
  const C turns = magnitude_of(steps) / format.modulus;                // exact, as are the following operations
  const C rest = magnitude_of(steps) - truncated(turns) * format.modulus;
  const C signed_rest = steps < 0 ? -rest : rest;
  const C half = format.modulus * C(0.5);
  const C wrapped = signed_rest >= half   ? signed_rest - format.modulus
                    : signed_rest < -half ? signed_rest + format.modulus
                                          : signed_rest;
  return (magnitude_of(steps) < all_multiples ? wrapped : value - value) + C(0);
}

// Rounds one number; `wraps` must be format.wraps.
template <typename C, Rounding rounding, bool wraps>
VITFAST_HOST_DEVICE C round_fixed(C value, const FixedFormat<C>& format, uint32_t random = 0) {
  constexpr C largest = sizeof(C) == 4 ? C(0x1.fffffep127) : C(0x1.fffffffffffffp1023);
  const C steps = round_to_whole<C, rounding>(value * format.scale, random);
  if constexpr (wraps) return wrap_around(steps, value, format) * format.step;
  const C bounded = steps > format.high ? format.high : (steps < format.low ? format.low : steps);
  const C result = bounded * format.step;
  if constexpr (rounding == Rounding::qtorch) return result;
  return magnitude_of(bounded) > largest ? value : result;  // too large to scale, and therefore already an integer
}

template <typename C>
inline FixedFormat<C> make_fixed_format(
    int64_t word_length, int64_t fraction_length, bool symmetric, FixedOverflow overflow) {
  const auto power = [](int64_t exponent) { return C(std::ldexp(1.0, int(exponent))); };
  const C half_range = power(word_length - 1);
  const bool saturates = overflow == FixedOverflow::saturate;
  constexpr C infinity = std::numeric_limits<C>::infinity();
  return {
      power(fraction_length),
      power(-fraction_length),
      saturates ? -half_range + (symmetric ? 1 : 0) : -infinity,
      saturates ? half_range - 1 : infinity,
      2 * half_range,
      overflow == FixedOverflow::wrap};
}

// Rounding to fixed point, prepared for both computing types.
struct FixedPointRounding {
  Rounding rounding;
  FixedFormat<float> format32;
  FixedFormat<double> format64;
};

}  // namespace vitfast
