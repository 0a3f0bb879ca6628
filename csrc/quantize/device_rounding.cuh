// Rounding to a float format fused into other kernels. There are two cases:
//
//     of_stored      a number loaded from memory: rounded like quantize_float, any bit pattern
//     of_computed    a computed number: the same except for NaN. Device arithmetic returns a NaN whose mantissa is all
//                    ones, which QPyTorch's rule, unaware of NaN, would carry into a zero. It is replaced by
//                    torch.nan's bit pattern, which becomes the format's largest number.

#pragma once

#include "csrc/common/float_format.h"
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// No rounding, known at compile time.
struct NoRounding {
  static constexpr bool is_there = false;
  static __device__ __forceinline__ float of_stored(float value) { return value; }
  static __device__ __forceinline__ float of_computed(float value) { return value; }
};

// Rounding by a rule known at compile time.
template <Rounding rule>
struct RuleRounding {
  FloatFormat<Float32Bits> format;
  bool is_there;

  __device__ __forceinline__ float of_stored(float value) const {
    return from_bits(round_bits<Float32Bits, rule>(bits_of(value), format));
  }
  __device__ __forceinline__ float of_computed(float value) const {
    if constexpr (rule == Rounding::qtorch) return of_stored(value == value ? value : from_bits(0x7fc00000u));
    return of_stored(value);
  }
};

// Kernel arguments for a rounding; `rounding` may be null.
template <Rounding rule>
RuleRounding<rule> rule_rounding(const FloatRounding* rounding) {
  if (rounding == nullptr) return {{}, false};
  return {rounding->format32, true};
}

}  // namespace vitfast
