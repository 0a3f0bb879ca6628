// Rounding to a narrower floating-point format, for host and device. Branch-free integer arithmetic, so that compilers
// vectorize loops over it.

#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/common/types.h"

#if defined(__CUDACC__)
#define VITFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VITFAST_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace vitfast {

// same codes as in vitfast/ops/rounding.py
enum class Rounding : int64_t { nearest_even = 0, nearest_away = 1, toward_zero = 2, stochastic = 3, qtorch = 4 };
enum class Overflow : int64_t { inf = 0, nan = 1, saturate = 2 };

// Calls f with the rounding rule as a std::integral_constant.
template <typename F>
void with_rule(Rounding rule, const F& f) {
  using R = Rounding;
  with_constant<R::nearest_even, R::nearest_away, R::toward_zero, R::stochastic, R::qtorch>(rule, f);
}

// Bit layout of the storage type.
struct Float32Bits {
  using Float = float;
  using Bits = uint32_t;
  using Signed = int32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  static constexpr Bits infinity = 0x7f800000u;
};

struct Float64Bits {
  using Float = double;
  using Bits = uint64_t;
  using Signed = int64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr Bits infinity = 0x7ff0000000000000u;
};

// Precomputed constants of a format, as bit patterns of the storage type.
template <typename Layout>
struct FloatFormat {
  using Bits = typename Layout::Bits;
  using Signed = typename Layout::Signed;

  Signed min_exponent;  // exponent field of the smallest normal value, in the storage type
  Signed dropped_bits;  // number of mantissa bits of a normal value that are rounded off
  Bits max_bits;        // magnitude of the largest finite value
  Bits smallest_bits;   // magnitude of the smallest positive value
  Bits overflow_bits;   // result magnitude of a finite value that overflows
  Bits infinity_bits;   // result magnitude of an infinity
  Bits nan_and_mask;    // a NaN becomes (bits & nan_and_mask) | nan_or_mask
  Bits nan_or_mask;
  Bits zero_sign_mask;  // sign bits kept by a zero result
  Bits code_parity;     // 1 if ties are resolved by the parity of the exponent (no mantissa bits), else 0
};

template <typename To, typename From>
VITFAST_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Bit-exact QPyTorch 0.3.0, for its formats with at most 22 mantissa bits. Rounds ties away from zero, but aligns
// subnormal numbers by a float32 addition that rounds first. NaN is not special: it is rounded like any bit pattern,
// and the largest mantissas carry into the sign.
VITFAST_HOST_DEVICE uint32_t round_as_qtorch(uint32_t bits, const FloatFormat<Float32Bits>& format) {
  const uint32_t half = 1u << (format.dropped_bits - 1);
  const uint32_t kept_bits = ~((half << 1) - 1);
  const uint32_t sign = bits & 0x80000000u;
  const bool is_subnormal = int32_t((bits & 0x7fffffffu) >> 23) < format.min_exponent;

  const float shift = bit_cast<float>(sign | uint32_t(format.min_exponent) << 23);
  const uint32_t shifted = bit_cast<uint32_t>(bit_cast<float>(bits) + shift);
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>((shifted + half) & kept_bits) - shift);

  const uint32_t normal = (bits + half) & kept_bits;
  const bool has_limit = format.infinity_bits != Float32Bits::infinity;
  const bool is_beyond = has_limit && (normal & 0x7fffffffu) >> 23 > format.max_bits >> 23;
  return is_subnormal ? subnormal : (is_beyond ? sign | format.max_bits : normal);
}

// Rounds a bit pattern. `random`: 31 random bits, used by stochastic rounding only.
//
// With E the exponent field (at least 1), the value is sig * 2^(E - bias - mantissa_bits) and its magnitude bits are
// ((E - 1) << mantissa_bits) + sig. Rounding sig to a multiple of 2^shift therefore carries into the exponent.
template <typename Layout, Rounding rounding>
VITFAST_HOST_DEVICE typename Layout::Bits round_bits(
    typename Layout::Bits bits, const FloatFormat<Layout>& format, uint32_t random = 0) {
  using Bits = typename Layout::Bits;
  using Signed = typename Layout::Signed;
  constexpr int mantissa_bits = Layout::mantissa_bits;
  constexpr int total_bits = sizeof(Bits) * 8;
  constexpr Bits sign_mask = Bits(1) << (total_bits - 1);
  if constexpr (rounding == Rounding::qtorch && sizeof(Bits) == 4) return round_as_qtorch(bits, format);

  const Bits magnitude = bits & ~sign_mask;
  const Bits sign = bits & sign_mask;
  const Signed field = Signed(magnitude >> mantissa_bits);
  const Signed exponent = field > 1 ? field : 1;
  const Bits base = Bits(exponent - 1) << mantissa_bits;
  const Bits sig = magnitude - base;  // below 2^(mantissa_bits + 1)

  const Signed below_normal = format.min_exponent - exponent;
  const bool is_subnormal = below_normal > 0;
  const Signed wanted_shift = format.dropped_bits + (is_subnormal ? below_normal : 0);
  // larger shifts give the same result: zero or the smallest value
  constexpr Signed max_shift = rounding == Rounding::stochastic ? total_bits - 1 : mantissa_bits + 3;
  const Signed shift = wanted_shift < max_shift ? wanted_shift : max_shift;
  const Bits step = Bits(1) << shift;

  Bits count;  // sig / step, rounded
  if constexpr (rounding == Rounding::nearest_even) {
    const Bits code = (Bits(exponent - format.min_exponent) + (sig >> mantissa_bits)) & 1;
    const Bits odd = is_subnormal || format.code_parity == 0 ? (sig >> shift) & 1 : code;
    const Bits half = step >> 1;
    // with shift 0 the addend is masked to zero
    count = (sig + ((half - 1 + odd) & (step - 1))) >> shift;
  } else if constexpr (rounding == Rounding::nearest_away || rounding == Rounding::qtorch) {
    count = (sig + (step >> 1)) >> shift;
  } else if constexpr (rounding == Rounding::toward_zero) {
    count = sig >> shift;
  } else {
    // compares fraction and random number in units of 2^-31; more bits would not fit
    const Bits fraction = sig & (step - 1);
    const Signed excess = wanted_shift - 31;
    const Bits scaled = excess > 0 ? fraction >> (excess < total_bits - 1 ? excess : total_bits - 1)
                                   : fraction << (excess < 0 ? -excess : 0);
    count = (sig >> shift) + Bits((scaled + random) >> 31);
  }

  const bool to_smallest = shift > mantissa_bits;  // the step exceeds the value: the result is zero or one step
  Bits rounded = to_smallest ? (count != 0 ? format.smallest_bits : 0) : base + (count << shift);
  rounded = rounded > format.max_bits ? format.overflow_bits : rounded;
  rounded = magnitude == Layout::infinity ? format.infinity_bits : rounded;
  const Bits kept_sign = rounded == 0 ? sign & format.zero_sign_mask : sign;
  const Bits number = rounded | kept_sign;
  return magnitude > Layout::infinity ? (bits & format.nan_and_mask) | format.nan_or_mask : number;
}

// `max_bits`: bits of the largest finite value.
template <typename Layout>
inline FloatFormat<Layout> make_float_format(
    int64_t exponent_bits,
    int64_t mantissa_bits,
    typename Layout::Bits max_bits,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    Overflow overflow) {
  using Bits = typename Layout::Bits;
  using Signed = typename Layout::Signed;
  constexpr Bits quiet_nan = Layout::infinity | (Bits(1) << (Layout::mantissa_bits - 1));
  constexpr Bits sign_mask = Bits(1) << (sizeof(Bits) * 8 - 1);

  FloatFormat<Layout> format{};
  const int64_t min_exponent = 2 - (int64_t(1) << (exponent_bits - 1));
  format.min_exponent = Signed(min_exponent + Layout::exponent_bias);
  format.dropped_bits = Signed(Layout::mantissa_bits - mantissa_bits);
  format.max_bits = max_bits;
  // 2^(min_exponent - mantissa_bits) may be subnormal in the storage type
  const int64_t smallest_field = min_exponent - mantissa_bits + Layout::exponent_bias;
  format.smallest_bits = smallest_field > 0 ? Bits(smallest_field) << Layout::mantissa_bits
                                            : Bits(1) << (Layout::mantissa_bits - 1 + smallest_field);
  format.overflow_bits = overflow == Overflow::inf   ? Layout::infinity
                         : overflow == Overflow::nan ? quiet_nan
                                                     : max_bits;
  format.infinity_bits = has_inf ? Layout::infinity : format.overflow_bits;
  format.nan_and_mask = has_nan ? ~Bits(0) : 0;
  format.nan_or_mask = has_nan ? quiet_nan : max_bits;
  format.zero_sign_mask = signed_zero ? sign_mask : 0;
  format.code_parity = mantissa_bits == 0 ? 1 : 0;
  return format;
}

// Rounding to a float format, prepared for both computing types.
struct FloatRounding {
  Rounding rounding;
  FloatFormat<Float32Bits> format32;  // for float32, bfloat16 and float16
  FloatFormat<Float64Bits> format64;  // for float64
};

// The format of a FloatRounding or FixedPointRounding for a computing type.
template <typename C, typename R>
const auto& format_of(const R& rounding) {
  if constexpr (sizeof(C) == 4) {
    return rounding.format32;
  } else {
    return rounding.format64;
  }
}

}  // namespace vitfast
