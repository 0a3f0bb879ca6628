// What a microkernel does with one word of a row of the left matrix and a vector of words of a panel: sums += a · b.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

typedef int16_t Shorts __attribute__((vector_size(VITFAST_VECTOR_BYTES)));

VITFAST_INLINE Integers<float> load_integers(const void* p) {
  Integers<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

VITFAST_INLINE Integers<float> broadcast_word(const uint32_t* p) {
  return int32_t(*p) + Integers<float>{};
}

// A word is a float32.
struct FloatDot {
  using Sum = Vector<float>;
  static constexpr bool is_integer = false;
  static VITFAST_INLINE void add(Sum& sum, Integers<float> a, Integers<float> b) {
    sum += bit_cast<Vector<float>>(a) * bit_cast<Vector<float>>(b);
  }
};

// A word is a pair of int16; exact in int32 for the sizes of a group.
struct Int16Dot {
  using Sum = Integers<float>;
  static constexpr bool is_integer = true;
  static VITFAST_INLINE void add(Sum& sum, Integers<float> a, Integers<float> b) {
#if VITFAST_VECTOR_BYTES == 64
    sum += (Integers<float>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif VITFAST_VECTOR_BYTES == 32
    sum += (Integers<float>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    sum += (Integers<float>)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    sum += ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

#if defined(__AVX512BF16__)
// A word is a pair of bfloat16.
struct BFloat16Dot {
  using Sum = Vector<float>;
  static constexpr bool is_integer = false;
  static VITFAST_INLINE void add(Sum& sum, Integers<float> a, Integers<float> b) {
    sum = (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(a), (__m512bh)(b));
  }
};
#endif

#if defined(__AVX512VNNI__)
// A word is four uint8 on the left and four int8 on the right. Around the intrinsic GCC 12 copies and spills the sums:
// half the speed.
struct Int8Dot {
  using Sum = Integers<float>;
  static constexpr bool is_integer = true;
  static VITFAST_INLINE void add(Sum& sum, Integers<float> a, Integers<float> b) {
    __asm__("vpdpbusd %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
  }
};
#endif

}  // namespace vitfast::VITFAST_ISA
