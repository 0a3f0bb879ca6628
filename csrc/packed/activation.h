// Activations of a vector of float32, by polynomials (minimax fits computed in double precision).

#pragma once

#include "csrc/common/gelu.h"
#include "csrc/cpu/vector.h"
#include "csrc/packed/packed.h"

namespace vitfast::VITFAST_ISA {

// Accuracy of a function: full for float32 results, narrow for results that are rounded to 8 bits next.
enum class Accuracy { full, narrow };

VITFAST_INLINE Vector<float> polynomial(Vector<float> x, float c0, float c1, float c2, float c3) {
  return ((c3 * x + c2) * x + c1) * x + c0;
}

// 2^x for x <= 127, zero far below; relative error 8e-8, narrow 8e-5.
template <Accuracy accuracy>
VITFAST_INLINE Vector<float> exp2(Vector<float> x) {
#if VITFAST_VECTOR_BYTES == 64
  const Vector<float> fraction = (Vector<float>)_mm512_reduce_ps((__m512)x, 8);
  const Vector<float> integer = x - fraction;
#else
  x = x < -126.0f ? broadcast(-126.0f) : x;
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> shifted = x + to_integer;
  const Vector<float> integer = shifted - to_integer;
  const Vector<float> fraction = x - integer;
#endif
  Vector<float> p;
  if constexpr (accuracy == Accuracy::narrow) {
    p = polynomial(fraction, 0.999928057f, 0.693261087f, 0.2426112f, 0.0551710092f);
  } else {
    p = 0.00132764794f * fraction + 0.00967554376f;
    p = p * fraction + 0.0555071309f;
    p = p * fraction + 0.240221202f;
    p = p * fraction + 0.693146944f;
    p = p * fraction + 1.0f;
  }
#if VITFAST_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_scalef_ps((__m512)p, (__m512)integer);
#else
  return bit_cast<Vector<float>>(bit_cast<Integers<float>>(p) + (bit_cast<Integers<float>>(shifted) << 23));
#endif
}

// The polynomials of csrc/common/gelu.h.
template <Accuracy accuracy>
VITFAST_INLINE Vector<float> gelu_erf(Vector<float> x) {
  constexpr bool is_narrow = accuracy == Accuracy::narrow;
  constexpr float limit = is_narrow ? gelu_limit_narrow : gelu_limit_full;
  const Vector<float> magnitude = bit_cast<Vector<float>>(bit_cast<Integers<float>>(x) & 0x7fffffff);
  const Vector<float> t = magnitude > limit ? broadcast(limit) : magnitude;  // keeps NaN
  const Vector<float> p = is_narrow ? log2_normal_tail_narrow(t) : log2_normal_tail_full(t);
  const Vector<float> positive = x < 0.0f ? Vector<float>{} : x;
  return positive - t * exp2<accuracy>(p);
}

// 1 / (1 + 2^(factor x)): with factor -log2(e) the logistic function.
template <Accuracy accuracy>
VITFAST_INLINE Vector<float> sigmoid(Vector<float> x, float factor) {
  const Vector<float> exponent = x * factor;
  return reciprocal(1.0f + exp2<accuracy>(exponent > 64.0f ? broadcast(64.0f) : exponent));
}

constexpr float minus_log2_e = -1.44269504f;

template <Activation activation, Accuracy accuracy>
VITFAST_INLINE Vector<float> activate(Vector<float> x) {
  if constexpr (activation == Activation::gelu) {
    return gelu_erf<accuracy>(x);
  } else if constexpr (activation == Activation::gelu_tanh) {
    const Vector<float> cubic = (x + 0.044715f * (x * x * x)) * 1.59576912f;  // 2 √(2/π)
    return x * sigmoid<accuracy>(cubic, minus_log2_e);
  } else if constexpr (activation == Activation::gelu_quick) {
    return x * sigmoid<accuracy>(x, 1.702f * minus_log2_e);
  } else if constexpr (activation == Activation::tanh) {
    return 1.0f - 2.0f * sigmoid<accuracy>(x, -2.0f * minus_log2_e);
  } else if constexpr (activation == Activation::silu) {
    return x * sigmoid<accuracy>(x, minus_log2_e);
  } else if constexpr (activation == Activation::relu) {
    return x < 0.0f ? Vector<float>{} : x;
  } else {
    return x;
  }
}

}  // namespace vitfast::VITFAST_ISA
