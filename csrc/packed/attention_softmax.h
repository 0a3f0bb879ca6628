// The softmax of a tile of logits in L1, without the division: it is applied to the GEMM with V, which has fewer
// elements.

#pragma once

#include "csrc/packed/activation.h"
#include "csrc/packed/gemm_operand.h"

namespace vitfast::VITFAST_ISA {

// Elementwise maximum; b if one of them is NaN.
VITFAST_INLINE Vector<float> larger(Vector<float> a, Vector<float> b) {
#if VITFAST_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_max_ps(__mmask16(-1), (__m512)a, (__m512)b);  // GCC 12 warns about the plain one
#else
  return a > b ? a : b;
#endif
}

// Subtracts the maximum of a row from its logits if it is large. Otherwise the rounding of scale * maximum would scale
// all weights of the row: by 2^(1/256) at this limit, and beyond float32's range from 2^31 on.
VITFAST_INLINE void center_large_logits(float* logits, int64_t columns, float scale, float& maximum) {
  if (__builtin_fabsf(scale * maximum) < 0x1p16f) return;
  for (int64_t j = 0; j < columns; j += width<float>) store(logits + j, load(logits + j) - maximum);
  maximum = 0;
}

// 2^x, or zero if that is denormal: Intel's processors take more than a hundred cycles to multiply such numbers, and
// the masks of shifted windows are -100, of which exp is denormal.
template <Accuracy accuracy>
VITFAST_INLINE Vector<float> exp2_or_zero(Vector<float> x) {
  const Vector<float> power = exp2<accuracy>(x);
  return x < -126.0f ? Vector<float>{} : power;
}

// weights[rows, columns] = 2^(scale logits - scale maxima); factors[rows] = 1 / the rows' sums. Several
// rows at a time hide latency. Very large logits and maxima are modified; weights may replace the logits.
template <int rows, Accuracy accuracy = Accuracy::full>
VITFAST_INLINE void exponentiate(
    float* logits, int64_t columns, float scale, float* maxima, float* weights, float* factors) {
  Vector<float> sums[rows], shifts[rows];
  for (int r = 0; r < rows; ++r) center_large_logits(logits + r * columns, columns, scale, maxima[r]);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    sums[r] = Vector<float>{};
    shifts[r] = broadcast(scale * maxima[r]);
  }
  for (int64_t j = 0; j < columns; j += width<float>) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int64_t place = r * columns + j;
      const Vector<float> e = exp2_or_zero<accuracy>(load(logits + place) * scale - shifts[r]);
      store(weights + place, e);
      sums[r] += e;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) factors[r] = 1.0f / sum_lanes(sums[r]);
}

#if defined(__AVX512BF16__)

// 2^x of (x + 127) * 2^23. Rounded to an integer, the argument has the bits of 2^x except for the mantissa f: a
// polynomial replaces 1 + f by 2^f. Zero far below, and for NaN; relative error 1e-4. Only the conversion uses the
// floating-point adders, which the sums and the rounding to bfloat16 keep busy.
VITFAST_INLINE Vector<float> exp2_of_bits(Vector<float> x) {
  const auto converted = (Integers<float>)_mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)x);
  const Integers<float> bits = converted > 0 ? converted : Integers<float>{};
  const Vector<float> m = bit_cast<Vector<float>>((bits & 0x007fffff) | 0x3f800000);
  // in [1, 2) for m in [1, 2), so that the exponent is correct
  const Vector<float> p = polynomial(m, 0.45423967f, 0.47413197f, -0.00606732955f, 0.0777157173f);
  constexpr int choose = 0xca;  // mask ? first : second
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  return (Vector<float>)_mm512_ternarylogic_epi32(exponent, (__m512i)bits, (__m512i)p, choose);
}

// The same with weights in bfloat16, two vectors at a time.
template <int rows>
VITFAST_INLINE void exponentiate(
    float* logits, int64_t columns, float scale, float* maxima, BFloat16* weights, float* factors) {
  constexpr int64_t w = width<float>;
  const float bits_scale = scale * 0x1p23f;
  Vector<float> sums[rows], shifts[rows], all{};  // `all`: NaN if one of the logits is
  for (int r = 0; r < rows; ++r) center_large_logits(logits + r * columns, columns, scale, maxima[r]);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    sums[r] = Vector<float>{};
    shifts[r] = broadcast(bits_scale * maxima[r] - 127 * 0x1p23f);
  }
  int64_t j = 0;
  for (; j + 2 * w <= columns; j += 2 * w) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int64_t place = r * columns + j;
      const Vector<float> x0 = load(logits + place) * bits_scale - shifts[r];
      const Vector<float> x1 = load(logits + place + w) * bits_scale - shifts[r];
      all += x0;
      all += x1;
      const Vector<float> e0 = exp2_of_bits(x0), e1 = exp2_of_bits(x1);
      const __m512bh numbers = _mm512_cvtne2ps_pbh((__m512)e1, (__m512)e0);
      std::memcpy(weights + place, &numbers, sizeof(numbers));
      sums[r] += e0;
      sums[r] += e1;
    }
  }
  if (j < columns) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int64_t place = r * columns + j;
      const Vector<float> x = load(logits + place) * bits_scale - shifts[r];
      all += x;
      const Vector<float> e = exp2_of_bits(x);
      store_bfloat16(weights + place, e);
      sums[r] += e;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) factors[r] = 1.0f / sum_lanes(sums[r]);
  if (_mm512_cmp_ps_mask((__m512)all, (__m512)all, _CMP_UNORD_Q) != 0) {
    for (int r = 0; r < rows; ++r) {
      for (j = 0; j < columns; ++j) {
        if (__builtin_isnan(logits[r * columns + j] - maxima[r])) factors[r] = __builtin_nanf("");
      }
    }
  }
}

#endif

}  // namespace vitfast::VITFAST_ISA
