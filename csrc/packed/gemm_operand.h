// The left operand of a GEMM: rows of words in the microkernel's format, converted from float32 or bfloat16 with an
// optional fused LayerNorm.
//
// Words hold pairs of bfloat16 and quads of uint8 (q + 128) if the processor has instructions for them; otherwise
// float32 rounded to the precision, and pairs of int16. Rows are padded with zeros to whole vectors.

#pragma once

#include "csrc/packed/activation.h"
#include "csrc/packed/gemm_microkernel.h"

namespace vitfast::VITFAST_ISA {

#if defined(__AVX512BF16__)
constexpr bool has_bfloat16_dot = true;
#else
constexpr bool has_bfloat16_dot = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool has_int8_dot = true;
#else
constexpr bool has_int8_dot = false;
#endif

#if defined(__AMX_TILE__)
constexpr bool has_tiles = true;
#else
constexpr bool has_tiles = false;
#endif

#if defined(VITFAST_EXTENDS)
constexpr bool is_extension = true;
#else
constexpr bool is_extension = false;
#endif

// Whether the GEMMs of a precision are compiled for this instruction set, or those of the one that it extends run.
constexpr bool is_own(Precision precision) {
  return !is_extension || (precision == Precision::bfloat16 && has_bfloat16_dot) || precision == Precision::int8;
}

// Calls f with a precision as a std::integral_constant if it is compiled for this instruction set.
template <typename F>
VITFAST_INLINE void with_own(Precision precision, const F& f) {
  using P = Precision;
  with_constant<P::float32, P::bfloat16, P::float16, P::int8>(precision, [&](auto constant) {
    if constexpr (is_own(constant)) f(constant);
  });
}

// The inputs of a row that have one int8 scale.
struct OperandGroup {
  uint32_t* words;
  float* scale;
  int32_t* start;  // initial value of the sums, with `has_winograd` only
};

struct Operand {
  uint32_t* words;  // [rows, stride]
  int64_t stride;
  float* scales;    // [rows, groups]: int8 only
  int32_t* starts;  // [rows, groups]: int8 only
  int64_t groups;
  OperandGroup group(int64_t row, int64_t index, int64_t first_word) const {
    const int64_t place = row * groups + index;
    return {words + row * stride + first_word, scales + place, starts + place};
  }
};

// Words of a row of k elements.
constexpr int64_t operand_words(Precision precision, int64_t k) {
  switch (precision) {
    case Precision::int8:
      return ceil_div(k, 4) * (has_int8_dot ? 1 : 2);
    case Precision::bfloat16:
      return has_bfloat16_dot ? ceil_div(k, 2) : k;
    default:
      return k;
  }
}

// Whole cache lines plus one: rows 4096 bytes apart would share an L1 cache set.
constexpr int64_t operand_stride(Precision precision, int64_t k) {
  return ceil_div(operand_words(precision, k), 16) * 16 + 16;
}

// The largest magnitude of a row as bits: a NaN counts as the largest.
VITFAST_INLINE float max_magnitude(const float* row, int64_t size) {
  Integers<float> largest{};
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Integers<float> bits = bit_cast<Integers<float>>(load_up_to<float>(row + i, count)) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  });
#if VITFAST_VECTOR_BYTES == 64
  const int32_t bits = _mm512_reduce_max_epi32((__m512i)largest);
#else
  int32_t bits = largest[0];
  for (int64_t i = 1; i < width<float>; ++i) bits = largest[i] > bits ? largest[i] : bits;
#endif
  return bit_cast<float>(bits);
}

VITFAST_INLINE Vector<float> round_to_float16(Vector<float> v) {
  return from_halves(to_halves(v));
}

VITFAST_INLINE Vector<float> round_to_bfloat16(Vector<float> v) {
  return bit_cast<Vector<float>>(round_to_bfloat16_bits(v));
}

VITFAST_INLINE void store_bfloat16(BFloat16* p, Vector<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh numbers = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &numbers, sizeof(numbers));
#else
  store(p, v);
#endif
}

// v * factor + offset, rounded once; an offset from 2^23 to 2^24 rounds to an integer, ties to even.
VITFAST_INLINE Vector<float> round_product(Vector<float> v, float factor, float offset) {
#if defined(__FMA__)
  return fused_multiply_add(v, broadcast(factor), broadcast(offset));
#else
  typedef double Doubles __attribute__((vector_size(2 * VITFAST_VECTOR_BYTES)));
  constexpr double to_integer = 0x1.8p52;
  const Doubles integers = __builtin_convertvector(v, Doubles) * double(factor) + to_integer;  // products are exact
  return __builtin_convertvector(integers - (to_integer - double(offset)), Vector<float>);
#endif
}

// The lowest byte of each word.
VITFAST_INLINE void store_low_bytes(uint8_t* p, Words words) {
#if VITFAST_VECTOR_BYTES == 64
  // GCC 12 converts one byte at a time
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(__mmask16(-1), (__m512i)words));
#else
  typedef uint8_t Bytes __attribute__((vector_size(VITFAST_VECTOR_BYTES / 4)));
  const Bytes bytes = __builtin_convertvector(words, Bytes);
  std::memcpy(p, &bytes, sizeof(bytes));
#endif
}

// Symmetric quantization of one group of a row.
VITFAST_INLINE void quantize_group(const float* row, int64_t size, const OperandGroup& out) {
  const float largest = max_magnitude(row, size);
  const float inverse = largest < 0x1p-119f ? 0.0f : 127.0f / largest;  // 127 / largest would overflow
  // adding 1.5 * 2^23 rounds to an integer in the low bits; unsigned numbers are offset by 128
  constexpr float to_integer = 12582912.0f + (has_int8_dot ? 128.0f : 0.0f);
#if VITFAST_VECTOR_BYTES == 32
  typedef int32_t Products __attribute__((vector_size(16)));
  Products products{};
#endif
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Vector<float> shifted = round_product(load_up_to<float>(row + i, count), inverse, to_integer);
    if constexpr (has_int8_dot) {
      store_low_bytes(reinterpret_cast<uint8_t*>(out.words) + i, bit_cast<Words>(shifted));
    } else {
      const Halves shorts = __builtin_convertvector(bit_cast<Words>(shifted), Halves);
      std::memcpy(reinterpret_cast<uint16_t*>(out.words) + i, &shorts, sizeof(shorts));
#if VITFAST_VECTOR_BYTES == 32
      // words 0 times 1, and 2 times 3, in lanes 0 and 2; the other lanes are zero
      products += (Products)_mm_madd_epi16((__m128i)shorts, _mm_srli_epi64((__m128i)shorts, 32));
#endif
    }
  });
  *out.scale = largest * (1.0f / 127.0f);
#if VITFAST_VECTOR_BYTES == 32
  *out.start = -(products[0] + products[2]);
#endif
}

// Pads a row of bfloat16 with zeros to whole pairs; AMX tiles take 16 pairs at a time.
VITFAST_INLINE void pad_bfloat16(BFloat16* row, int64_t size) {
  constexpr int64_t step = has_tiles ? 32 : 2;
  for (int64_t i = size; i % step != 0; ++i) row[i] = BFloat16{0};
}

// A row of float32, [k], as words of row r of an operand.
template <Precision precision>
VITFAST_INLINE void convert_row(const float* row, int64_t k, const Operand& a, int64_t r) {
  uint32_t* const words = a.words + r * a.stride;
  if constexpr (precision == Precision::int8) {
    const int64_t size = group_size(k);
    for (int64_t group = 0; group < group_count(k); ++group) {
      const int64_t begin = group * size, count = k - begin < size ? k - begin : size;
      quantize_group(row + begin, count, a.group(r, group, operand_words(precision, begin)));
    }
  } else {
    for_each_vector<float>(k, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Vector<float> v = load_up_to<float>(row + i, count);
      float* target = reinterpret_cast<float*>(words) + i;
      if constexpr (precision == Precision::bfloat16 && has_bfloat16_dot) {
        store_bfloat16(reinterpret_cast<BFloat16*>(words) + i, v);
      } else if constexpr (precision == Precision::bfloat16) {
        store(target, round_to_bfloat16(v));
      } else if constexpr (precision == Precision::float16) {
        store(target, round_to_float16(v));
      } else {
        store(target, v);
      }
    });
    if constexpr (precision == Precision::bfloat16 && has_tiles) pad_bfloat16(reinterpret_cast<BFloat16*>(words), k);
  }
}

// Normalizes a row of x, as float32 (rounded to float16 first for fp16_32), to `row`, which has space for whole vectors
// and may be x.
template <Precision precision, typename T>
VITFAST_INLINE void normalize_row(const T* x, int64_t size, const Norm& norm, float* row) {
  const auto read = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Vector<float> v = load_up_to<float>(x + i, count);
    return precision == Precision::float16 ? round_to_float16(v) : v;
  };
  LaneSums<float> sum, squares;
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) { sum += read(i, count); });
  const float mean = sum_lanes(sum.total()) / float(size);
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vector<float> centered = read(i, count) - mean;
    for (int64_t j = count; j < width<float>; ++j) centered[j] = 0;
    squares += centered * centered;
  });
  const float rstd = 1.0f / __builtin_sqrtf(sum_lanes(squares.total()) / float(size) + float(norm.eps));
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vector<float> v = (read(i, count) - mean) * rstd;
    if (norm.weight != nullptr) v *= load_up_to<float>(norm.weight + i, count);
    if (norm.bias != nullptr) v += load_up_to<float>(norm.bias + i, count);
    store(row + i, v);
  });
}

// Converts `count` rows of x, normalized if `norm.is_used`. `row`: space for a row in float32 and a vector.
template <Precision precision, typename T>
void prepare_rows(
    const T* x, int64_t stride, const Norm& norm, int64_t count, int64_t k, const Operand& a, float* row) {
  for (int64_t r = 0; r < count; ++r, x += stride) {
    const float* source = row;
    if (norm.is_used) {
      normalize_row<precision>(x, k, norm, row);
    } else if constexpr (sizeof(T) == sizeof(float)) {
      source = x;
    } else {
      for_each_vector<float>(
          k, [&](int64_t i, int64_t n) __attribute__((always_inline)) { store(row + i, load_up_to<float>(x + i, n)); });
    }
    convert_row<precision>(source, k, a, r);
  }
}

template <Precision precision>
void prepare_operand(
    const Rows& x, const Norm& norm, int64_t begin, int64_t count, int64_t k, const Operand& a, float* row) {
  if (x.type == Type::bfloat16) {
    prepare_rows<precision>(static_cast<const BFloat16*>(x.data) + begin * x.stride, x.stride, norm, count, k, a, row);
  } else {
    prepare_rows<precision>(static_cast<const float*>(x.data) + begin * x.stride, x.stride, norm, count, k, a, row);
  }
}

}  // namespace vitfast::VITFAST_ISA
