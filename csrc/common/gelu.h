// Minimax polynomials for GELU and its derivative, shared by CPU vectors and CUDA scalars.
//
// GELU(x) = max(x, 0) - |x| Φ(-|x|). log2 Φ(-t) is close to a parabola and is approximated by a polynomial on [0,
// limit]. Callers clamp t to the limit, beyond which t Φ(-t) is negligible. Given an exact 2^p, the error is
//
//     full      5e-8 absolute, and less than |x| for small x: for float32 results
//     half      1e-5 relative (a hundredth of a float16 ulp) or 1e-9, whichever is larger: for float16 results
//     narrow    4e-4 relative (a tenth of a bfloat16 ulp): for bfloat16 and 8-bit results
//
// The derivative is GELU'(x) = Φ(x) + x φ(x) = 1 - GELU'(-x). GELU'(-t) is a polynomial times 2^e, where e is a
// parabola without a constant term. Its coefficients are fitted too: with exp(-t²/2) for 2^e, the polynomial would need
// degree 8 instead of 5 (half) and 6 instead of 3 (narrow). The derivative has a zero, so the error also has an
// absolute part:
//
//     half      5e-5 relative (a tenth of a float16 ulp or less) or 2e-7, whichever is larger
//     narrow    2e-4 relative or 5e-6

#pragma once

#include "csrc/common/float_format.h"

namespace vitfast {

constexpr float gelu_limit_full = 6.0f;
constexpr float gelu_limit_half = 6.25f;
constexpr float gelu_limit_narrow = 5.5f;

// log2 Φ(-t); V is a number or a vector of numbers.
template <typename V>
VITFAST_HOST_DEVICE V log2_normal_tail_full(V t) {
  V p = -1.99356034e-8f * t + 6.3484373e-7f;
  p = p * t - 8.62346405e-6f;
  p = p * t + 6.32379379e-5f;
  p = p * t - 0.000236051099f;
  p = p * t - 8.56479674e-5f;
  p = p * t + 0.00704475772f;
  p = p * t - 0.0525024086f;
  p = p * t - 0.459202409f;
  p = p * t - 1.15110624f;
  return p * t - 0.99999994f;
}

template <typename V>
VITFAST_HOST_DEVICE V log2_normal_tail_half(V t) {
  V p = 3.32271193e-5f * t - 0.000758251932f;
  p = p * t + 0.00798837747f;
  p = p * t - 0.0531510971f;
  p = p * t - 0.45907402f;
  p = p * t - 1.15107083f;
  return p * t - 1.00000572f;
}

template <typename V>
VITFAST_HOST_DEVICE V log2_normal_tail_narrow(V t) {
  V p = -0.000233251863f * t + 0.00486979447f;
  p = p * t - 0.0445991941f;
  p = p * t - 0.469680488f;
  p = p * t - 1.14626157f;
  return p * t - 1.00035882f;
}

// GELU'(-t) = 2^e s: e.
template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_exponent_half(V t) {
  return (-0.6286225f * t - 0.5380328f) * t;
}

template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_exponent_narrow(V t) {
  return (-0.68212324f * t - 0.77706623f) * t;
}

// GELU'(-t) = 2^e s: s.
template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_half(V t) {
  V p = -0.00153404649f * t + 0.0188829973f;
  p = p * t - 0.0460681431f;
  p = p * t - 0.0473183393f;
  p = p * t - 0.610980272f;
  return p * t + 0.499984771f;
}

template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_narrow(V t) {
  V p = -0.0742852762f * t - 0.127654314f;
  p = p * t - 0.527041495f;
  return p * t + 0.499935746f;
}

}  // namespace vitfast
