// Minimax polynomials for GELU and its derivative, shared by CPU vectors and CUDA scalars.
//
// GELU(x) = max(x, 0) - |x| Φ(-|x|). log2 Φ(-t) is close to a parabola and is approximated by a polynomial on [0,
// limit]. Callers clamp t to the limit, beyond which t Φ(-t) is negligible. Given an exact 2^p, the error is
//
//     full      5e-8 absolute, and less than |x| for small x: for float32 and float16 results
//     narrow    4e-4 relative (a tenth of a bfloat16 ulp): for bfloat16 and 8-bit results
//
// The derivative is GELU'(x) = Φ(x) + x φ(x) = 1 - GELU'(-x), with GELU'(-t) = exp(-t²/2) times a polynomial. It has a
// zero, so the error also has an absolute part:
//
//     full      2e-5 relative or 2e-7, whichever is larger
//     narrow    4e-4 relative or 5e-6

#pragma once

#include "csrc/common/float_format.h"

namespace vitfast {

constexpr float gelu_limit_full = 6.0f;
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
VITFAST_HOST_DEVICE V log2_normal_tail_narrow(V t) {
  V p = -0.000233251863f * t + 0.00486979447f;
  p = p * t - 0.0445991941f;
  p = p * t - 0.469680488f;
  p = p * t - 1.14626157f;
  return p * t - 1.00035882f;
}

// GELU'(-t) exp(t²/2).
template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_full(V t) {
  V p = 1.9747353e-5f * t - 0.00037730444f;
  p = p * t + 0.0031516335f;
  p = p * t - 0.015460133f;
  p = p * t + 0.051150523f;
  p = p * t - 0.12590352f;
  p = p * t + 0.24759611f;
  p = p * t - 0.79753286f;
  return p * t + 0.49999008f;
}

template <typename V>
VITFAST_HOST_DEVICE V gelu_slope_narrow(V t) {
  V p = 0.00048890436f * t - 0.0062283897f;
  p = p * t + 0.034031007f;
  p = p * t - 0.108854815f;
  p = p * t + 0.23902656f;
  p = p * t - 0.79572594f;
  return p * t + 0.49991393f;
}

}  // namespace vitfast
