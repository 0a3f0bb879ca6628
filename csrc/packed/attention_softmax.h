// The softmax of a tile of logits in the first-level cache, but for the division: that is left to the product with the
// values, whose sums are fewer.

#pragma once

#include "csrc/packed/activation.h"
#include "csrc/packed/operand.h"

namespace vitfast::VITFAST_ISA {

// The larger of each pair; b where one of them is NaN.
VITFAST_INLINE Vector<float> larger(Vector<float> a, Vector<float> b) {
#if VITFAST_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

VITFAST_INLINE float largest_lane(Vector<float> v) {
#if VITFAST_VECTOR_BYTES == 64
  return _mm512_reduce_max_ps((__m512)v);
#else
  return max_across<float>(v);
#endif
}

// weights[rows, columns] = 2^(scale logits - scale maxima); factors = 1 / the rows' sums. Several rows at a time hide
// each other's latency.
template <int rows>
VITFAST_INLINE void exponentiate(
    const float* logits, int64_t columns, float scale, const float* maxima, float* weights, float* factors) {
  Vector<float> sums[rows], shifts[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    sums[r] = Vector<float>{};
    shifts[r] = broadcast(scale * maxima[r]);
  }
  for (int64_t j = 0; j < columns; j += width<float>) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int64_t place = r * columns + j;
      const Vector<float> e = exp2<Accuracy::full>(load(logits + place) * scale - shifts[r]);
      store(weights + place, e);
      sums[r] += e;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) factors[r] = 1.0f / sum_lanes(sums[r]);
}

#if defined(__AVX512BF16__)

// 2^(x - 127), where x * 2^23 is given, for x below 254; zero far below. Rounded to an integer, x * 2^23 has the bits of
// the result but for its mantissa f: 2^f takes the place of 1 + f. Relative error 1e-4. A NaN sets the sign of `signs`.
VITFAST_INLINE Vector<float> exp2_of_bits(Vector<float> x, Integers<float>& signs) {
  const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), (__m512)x);  // keeps NaN
  const auto bits = (Integers<float>)_mm512_maskz_cvtps_epi32(__mmask16(-1), positive);  // INT_MIN of NaN
  signs |= bits;
  const Vector<float> m = bit_cast<Vector<float>>((bits & 0x007fffff) | 0x3f800000);
  // within [1, 2), or the exponent would be wrong
  const Vector<float> p = polynomial(m, 0.45423967f, 0.47413197f, -0.00606732955f, 0.0777157173f);
  return bit_cast<Vector<float>>((bits & int32_t(0xff800000)) | (bit_cast<Integers<float>>(p) & 0x007fffff));
}

// The same with weights in bfloat16.
template <int rows>
VITFAST_INLINE void exponentiate(
    const float* logits, int64_t columns, float scale, const float* maxima, BFloat16* weights, float* factors) {
  constexpr int64_t w = width<float>;
  const float bits_scale = scale * 0x1p23f;
  Vector<float> sums[rows], shifts[rows];
  Integers<float> signs{};
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
      const Vector<float> low = exp2_of_bits(load(logits + place) * bits_scale - shifts[r], signs);
      const Vector<float> high = exp2_of_bits(load(logits + place + w) * bits_scale - shifts[r], signs);
      const __m512bh numbers = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
      std::memcpy(weights + place, &numbers, sizeof(numbers));
      sums[r] += low;
      sums[r] += high;
    }
  }
  if (j < columns) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const int64_t place = r * columns + j;
      const Vector<float> e = exp2_of_bits(load(logits + place) * bits_scale - shifts[r], signs);
      store_bfloat16(weights + place, e);
      sums[r] += e;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) factors[r] = 1.0f / sum_lanes(sums[r]);
  if (_mm512_movepi32_mask((__m512i)signs) != 0) {
    for (int r = 0; r < rows; ++r) {
      for (j = 0; j < columns; ++j) {
        if (__builtin_isnan(logits[r * columns + j] - maxima[r])) factors[r] = __builtin_nanf("");
      }
    }
  }
}

#endif

}  // namespace vitfast::VITFAST_ISA
