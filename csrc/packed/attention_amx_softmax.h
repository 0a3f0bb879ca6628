// Softmax weights of attention on AMX tiles, in integer arithmetic: while tiles are multiplied, only one of the two
// vector units executes floating-point instructions, but both execute integer ones. A weight is the 16 bits of its
// bfloat16, computed from a logarithm with 9 fraction bits and a table.

#pragma once

#include "csrc/packed/amx.h"

#if defined(__AMX_BF16__)

namespace vitfast::VITFAST_ISA {

constexpr int64_t tile_words = 16 * amx_words;
constexpr int64_t pair_rows = 2 * amx_rows;      // queries at a time,
constexpr int64_t chunk_tokens = 2 * amx_words;  // and tokens: also the depth of a product with values
constexpr int64_t block_rows = 4 * pair_rows;    // queries whose weights are kept

// Logarithms of weights: the bits of bfloat16 and two more, i.e. a biased exponent and 9 fraction bits.
constexpr int more_bits = 2;
constexpr float weight_unit = 512.0f;
// Exponents of a row's reference and of its maximum: 2^-47 leaves space for larger logits.
constexpr float first_exponent = 80.0f, largest_exponent = 120.0f;

// 512 (1 + m - 2^m) at the midpoint of the four m that share their first seven bits: the correction from the bits of a
// logarithm (plus half a unit of the result) to the mantissa bits of its power.
struct PowerTable {
  constexpr PowerTable() : values() {
    for (int i = 0; i < 128; ++i) {
      const double m = (i - 0.125) / 128;
      double power = 1, term = 1;
      for (int n = 1; n < 20; ++n) power += term *= m * 0.6931471805599453 / n;
      values[i] = uint8_t(512 * (1 + m - power) + 0.5);
    }
  }
  alignas(64) uint8_t values[128];
};
inline constexpr PowerTable power_table;

constexpr float reference_of_zero(float exponent) {
  return exponent * weight_unit + 0.5f * (1 << more_bits);
}

struct NoWork {
  void take_some() {}
  void take_rest() {}
};

// Computes the weights of the logits of 16 or 32 queries and 32 tokens, four rows at a time.
struct Exponentiation {
  // `weights`: of the first 16 queries; those of the others follow `next_tile` words later. `mask`: weights to compute.
  VITFAST_INLINE Exponentiation(
      const float* logits,
      const float* references,
      uint32_t* weights,
      int64_t next_tile,
      int64_t rows,
      float scale,
      uint32_t mask)
      : logits(logits),
        references(references),
        weights(weights),
        next_tile(next_tile),
        last(references + rows),
        scale(scale),
        mask(mask),
        first_powers(_mm512_load_si512(power_table.values)),
        last_powers(_mm512_load_si512(power_table.values + 64)),
        least(_mm512_set1_epi32(-1)),
        middle(references + amx_rows) {}

  VITFAST_INLINE void take_some() {
    if (references == last) return;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Vector<float> low = load(logits + r * chunk_tokens) * scale - references[r];
      const Vector<float> high = load(logits + r * chunk_tokens + amx_words) * scale - references[r];
      const __m512i logarithms = _mm512_packus_epi32(
          _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)low), _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)high));
      least = _mm512_mask_min_epu16(least, mask, least, logarithms);
      const __m512i places = _mm512_srli_epi16(logarithms, more_bits);
      const __m512i excess =
          _mm512_maskz_permutex2var_epi8(__mmask64(0x5555555555555555), first_powers, places, last_powers);
      const __m512i numbers = _mm512_maskz_srli_epi16(mask, _mm512_subs_epu16(logarithms, excess), more_bits);
      std::memcpy(weights + r * amx_words, &numbers, sizeof(numbers));
    }
    logits += 4 * chunk_tokens;
    references += 4;
    weights += 4 * amx_words;
    if (references == middle) weights += next_tile;
  }

  VITFAST_INLINE void take_rest() {
    while (references != last) take_some();
  }

  // Whether a weight is far below the others, or NaN.
  VITFAST_INLINE bool has_far() const { return _mm512_cmpeq_epi16_mask(least, _mm512_setzero_si512()) != 0; }

  const float* logits;
  const float* references;
  uint32_t* weights;
  const int64_t next_tile;
  const float* const last;
  const float scale;
  const uint32_t mask;
  const __m512i first_powers, last_powers;
  __m512i least;
  const float* const middle;
};

}  // namespace vitfast::VITFAST_ISA

#endif
