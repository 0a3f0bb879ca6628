#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline double from_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float to_float(float value) {
  return value;
}
inline float to_float(BFloat16 value) {
  return from_bits(uint32_t(value.bits) << 16);
}
inline float to_float(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // moving the fields to their places leaves an exponent that is 112 too small, subnormal numbers included
  return from_bits(sign | magnitude << 13) * 0x1p112f;
}

// Inlined always: of an element that a call returns g++ reports no store to the race check.
template <typename T>
VITFAST_HOST_DEVICE T round_to(float value);
template <>
VITFAST_HOST_DEVICE float round_to<float>(float value) {
  return value;
}
template <>
VITFAST_HOST_DEVICE BFloat16 round_to<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline const FloatFormat<Float32Bits> half_format =
    make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
template <>
VITFAST_HOST_DEVICE Half round_to<Half>(float value) {
  const uint32_t bits = round_bits<Float32Bits, Rounding::nearest_even>(bits_of(value), half_format);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if ((bits & 0x7fffffff) >= 0x7f800000) return {uint16_t(sign | 0x7c00 | (bits >> 13 & 0x3ff))};
  return {uint16_t(sign | bits_of(from_bits(bits & 0x7fffffff) * 0x1p-112f) >> 13)};
}

template <typename T>
inline uint32_t round_to_pair(float low, float high) {
  return uint32_t(round_to<T>(low).bits) | uint32_t(round_to<T>(high).bits) << 16;
}

template <typename T>
inline void store_pair(T* x, int pair, float first, float second) {
  x[2 * pair] = round_to<T>(first);
  x[2 * pair + 1] = round_to<T>(second);
}

// Without flags for an instruction set the compiler has no fused multiply-add to contract into.
inline float rounded_sum(float a, float b) {
  return a + b;
}

inline float fused_multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}

inline float exp2_approximate(float x) {
  return std::exp2(x);
}
inline float log2_approximate(float x) {
  return std::log2(x);
}

inline float reciprocal_approximate(float x) {
  return 1.0f / x;
}

inline int opaque(int value) {
  return value;
}

}  // namespace vitfast
