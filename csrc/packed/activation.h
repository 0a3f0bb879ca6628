// Activations of a vector of float32, by polynomials (minimax fits computed in double precision).

#pragma once

#include "csrc/common/gelu.h"
#include "csrc/cpu/vector.h"
#include "csrc/packed/packed.h"

namespace vitfast::VITFAST_ISA {

// Accuracy of a function: full for float32 results, narrow for results that are rounded to bfloat16 next, and int8 for
// rows that are quantized to int8 next.
enum class Accuracy { full, narrow, int8 };

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

#if VITFAST_VECTOR_BYTES == 64
// t Φ(-t) for 0 <= t <= 4, by 16 parabolas: part i has the numbers t for which 3.75 t rounds to i. The error is at most
// 8e-5 (1.3e-4 above 3.86), and for t < 2 at most 7e-4 of GELU(t) and of GELU(-t).
VITFAST_INLINE Vector<float> normal_tail_by_parts(Vector<float> t) {
  // clang-format off
  alignas(64) static constexpr float coefficients[3][16] = {
      {0.0f, 0.00081963354f, 0.0133769084f, 0.0579367876f, 0.143932194f, 0.256318629f,
       0.360625923f, 0.422007412f, 0.423469543f, 0.371620566f, 0.289048821f, 0.201175302f,
       0.126172543f, 0.0716902241f, 0.0370562002f, -0.854630351f},
      {0.499969631f, 0.490458548f, 0.429772019f, 0.297040701f, 0.112582639f, -0.0756616145f,
       -0.219075114f, -0.290906608f, -0.293008685f, -0.247530118f, -0.182357445f, -0.119483322f,
       -0.0704358742f, -0.0376379006f, -0.0183249842f, 0.435364753f},
      {-0.397761792f, -0.370071828f, -0.296168923f, -0.197007746f, -0.0979275331f, -0.0190230068f,
       0.0303030498f, 0.0513247848f, 0.0520108491f, 0.0420357734f, 0.0291729197f, 0.01792413f,
       0.0099043753f, 0.00496772444f, 0.00227508834f, -0.0554267876f}};
  // clang-format on
  const auto part = (__m512i)(t * 3.75f + 12582912.0f);  // adding 1.5 * 2^23 leaves the integer in the low bits
  const auto coefficient = [&](int power) __attribute__((always_inline)) {
    return (Vector<float>)_mm512_permutexvar_ps(part, _mm512_load_ps(coefficients[power]));
  };
  return (coefficient(2) * t + coefficient(1)) * t + coefficient(0);
}
#endif

// By the polynomials of csrc/common/gelu.h; for int8, with AVX-512, by parabolas.
template <Accuracy accuracy>
VITFAST_INLINE Vector<float> gelu_erf(Vector<float> x) {
  constexpr bool is_full = accuracy == Accuracy::full,
                 has_parts = accuracy == Accuracy::int8 && VITFAST_VECTOR_BYTES == 64;
  constexpr float limit = is_full ? gelu_limit_full : has_parts ? 4.0f : gelu_limit_narrow;
  const Vector<float> magnitude = bit_cast<Vector<float>>(bit_cast<Integers<float>>(x) & 0x7fffffff);
  const Vector<float> t = magnitude > limit ? broadcast(limit) : magnitude;  // keeps NaN
  const Vector<float> positive = x < 0.0f ? Vector<float>{} : x;
#if VITFAST_VECTOR_BYTES == 64
  if constexpr (has_parts) return positive - normal_tail_by_parts(t);
#endif
  const Vector<float> p = is_full ? log2_normal_tail_full(t) : log2_normal_tail_narrow(t);
  return positive - t * exp2<is_full ? Accuracy::full : Accuracy::narrow>(p);
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
