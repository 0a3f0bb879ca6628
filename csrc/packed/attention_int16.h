// Attention of int8 models in int16: int16 pairs are multiplied at twice the rate of float32, and with VNNI on Intel's
// processors at four times the rate of bfloat16.
//
// Numbers are multiples of a step, so that int32 holds the sums of products. Each query has its own step, the keys of a
// head have one, and so have its values: 13 bits for head_dim = 64. The weights of a query are scaled so that their sum
// is at most 2^19 and none exceeds 15 bits.

#pragma once

#include "csrc/packed/attention_gemm.h"
#include "csrc/packed/gemm_operand.h"

namespace vitfast::VITFAST_ISA {

// Only where it is faster than the product of the operands that attention has otherwise.
constexpr bool has_int16_attention = VITFAST_VECTOR_BYTES > 16 && !has_bfloat16_dot;

// The largest value and the largest sum of a row's weights: sums of their products fit 32 bits.
constexpr int64_t max_int16_value = 4095, max_int16_weights = 1 << 19;
constexpr int64_t max_int16_tokens = 1 << 16;

// Rounds v * to_integers; the integer is in the low bits.
VITFAST_INLINE Words round_to_low_bits(Vector<float> v, float to_integers) {
  return bit_cast<Words>(round_product(v, to_integers, 0x1.8p23f));
}

VITFAST_INLINE Integers<float> join_low_halves(Words low, Words high) {
  return bit_cast<Integers<float>>((low & 0xffff) | (high << 16));
}

// As exponentiate for float32, with weights in int16 and the factors that divide by their sums. A word of two vectors
// of columns holds one of each. Rounding may increase a sum by half of the number of columns.
template <int rows>
VITFAST_INLINE void exponentiate(
    float* logits, int64_t columns, float scale, float* maxima, int16_t* weights, float* factors) {
  constexpr int64_t w = width<float>;
  exponentiate<rows, Accuracy::narrow>(logits, columns, scale, maxima, logits, factors);
  for (int r = 0; r < rows; ++r) {
    const float limit = float(max_int16_weights - columns) * factors[r];
    const float to_integers = limit < 32700.0f ? limit : 32700.0f;
    factors[r] /= to_integers;
    for (int64_t j = 0; j < columns; j += 2 * w) {
      const float* const e = logits + r * columns + j;
      const Words high = j + w < columns ? round_to_low_bits(load(e + w), to_integers) : Words{};
      const Integers<float> pairs = join_low_halves(round_to_low_bits(load(e), to_integers), high);
      std::memcpy(weights + j, &pairs, sizeof(pairs));
    }
    weights += ceil_div(columns, 2 * w) * 2 * w;
  }
}

// Pairs of int16, of an even head_dim.
struct Int16Attention {
  using Dot = Int16Dot;
  using Number = int16_t;
  static constexpr int64_t per_word = 2;
  float key_scale, value_scale;

  struct Scales {
    Scales(float largest, float limit)
        : to_integers(largest < 0x1p-100f ? 0.0f : limit / largest), to_float(largest / limit) {}
    float to_integers, to_float;
  };
  // Of queries and keys: head_dim products of two such numbers fit 32 bits.
  static float largest_factor(int64_t head_dim) {
    return __builtin_floorf(__builtin_sqrtf(float(0x7fffff00) / float(head_dim)));
  }
  static float largest_of(const float* rows, int64_t stride, int64_t count, int64_t size) {
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float of_row = max_magnitude(rows + i * stride, size);
      if (of_row != of_row) return of_row;  // NaN
      largest = of_row > largest ? of_row : largest;
    }
    return largest;
  }
  static void round_row(const float* row, int64_t size, float to_integers, uint32_t* words) {
    for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Halves numbers =
          __builtin_convertvector(round_to_low_bits(load_up_to<float>(row + i, count), to_integers), Halves);
      std::memcpy(reinterpret_cast<int16_t*>(words) + i, &numbers, sizeof(numbers));
    });
  }

  // `words`: rows that are `packed_stride` apart.
  static void pack_queries(
      const float* q,
      int64_t stride,
      int64_t count,
      int64_t head_dim,
      uint32_t* words,
      int64_t packed_stride,
      float* scales) {
    for (int64_t i = 0; i < count; ++i) {
      const Scales found(max_magnitude(q + i * stride, head_dim), largest_factor(head_dim));
      round_row(q + i * stride, head_dim, found.to_integers, words + i * packed_stride);
      scales[i] = found.to_float;
    }
  }
  // `rounded`: memory for the rows.
  void pack_keys(const float* k, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words, uint32_t* rounded) {
    const Scales scales(largest_of(k, stride, tokens, head_dim), largest_factor(head_dim));
    const int64_t row_words = padded<float>(head_dim) / 2;
    for (int64_t i = 0; i < tokens; ++i) {
      round_row(k + i * stride, head_dim, scales.to_integers, rounded + i * row_words);
    }
    // the vectors only carry the bits of a pair
    pack_key_panels(reinterpret_cast<const float*>(rounded), row_words, tokens, head_dim / 2, words);
    key_scale = scales.to_float;
  }
  // A word holds the values of the tokens of a word of weights.
  void pack_values(const float* v, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    constexpr int64_t w = width<float>;
    const Scales scales(largest_of(v, stride, tokens, head_dim), float(max_int16_value));
    const auto round_token = [&](int64_t token, int64_t d, int64_t count) __attribute__((always_inline)) {
      return token < tokens ? round_to_low_bits(load_up_to<float>(v + token * stride + d, count), scales.to_integers)
                            : Words{};
    };
    pack_value_panels(
        value_words(tokens), head_dim, words, [&](int64_t i, int64_t d, int64_t count) __attribute__((always_inline)) {
          const int64_t token = i / w * 2 * w + i % w;
          return join_low_halves(round_token(token, d, count), round_token(token + w, d, count));
        });
    value_scale = scales.to_float;
  }
  static int64_t weight_words(int64_t columns) { return ceil_div(columns, 2 * width<float>) * width<float>; }
  static int64_t value_words(int64_t tokens) {
    constexpr int64_t w = width<float>;
    return tokens / (2 * w) * w + (tokens % (2 * w) < w ? tokens % (2 * w) : w);
  }
};

}  // namespace vitfast::VITFAST_ISA
