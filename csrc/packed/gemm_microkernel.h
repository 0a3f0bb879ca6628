// The GEMM microkernel: up to 6 rows of the left matrix times a panel of 64 columns, over one group of inputs.
//
// With AVX-512, 24 accumulators (6 rows, 4 vectors), 4 vectors of the panel and a broadcast use the 32 registers. With
// 16 registers a pass covers 2 vectors, a panel takes several passes over the rows' words, and the loop is unrolled
// because its overhead counts. The sums of every row are formed in the same order for any number of rows: results do
// not depend on how rows are split.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "csrc/cpu/vector.h"
#include "csrc/packed/packed.h"

namespace vitfast::VITFAST_ISA {

// --- dot products of words: sums += a · b, for one word of a row of the left matrix and a vector of words of a panel
// ---

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
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
#elif VITFAST_VECTOR_BYTES == 64
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
// A word is four uint8 on the left and four int8 on the right. With the intrinsic, GCC 12 copies and spills the sums,
// at half the speed.
struct Int8Dot {
  using Sum = Integers<float>;
  static constexpr bool is_integer = true;
  static VITFAST_INLINE void add(Sum& sum, Integers<float> a, Integers<float> b) {
    __asm__("vpdpbusd %[b], %[a], %[sum]" : [sum] "+v"(sum) : [a] "v"(a), [b] "v"(b));
  }
};
#endif

// --- tiles ---

constexpr int tile_rows = 6;
constexpr bool is_wide = VITFAST_VECTOR_BYTES == 64;
constexpr int tile_vectors = is_wide ? 4 : 2;
constexpr int tile_unroll = is_wide ? 1 : 4;

// Rows of the left matrix that a microkernel processes at a time.
template <typename Dot>
constexpr int64_t rows_at_once = tile_rows;

template <typename Dot>
constexpr int64_t tile_size = rows_at_once<Dot> * panel_columns;

// One group of a panel, or a part of its rows.
struct Panel {
  const uint32_t* words;  // [rows, 64]
  int64_t rows;
  const int32_t* compensation;  // [64], initial values of integer sums, or null
  const uint32_t* tail;         // AMX: the last rows % 16 rows and zeros
};

// Prefetches a few columns of rows that are too far apart for the hardware prefetcher. Also used for lines to be
// written: stores that miss the cache are serialized.
inline void prefetch_rows(const void* first, int64_t stride_bytes, int64_t rows, int64_t bytes) {
  const char* row = static_cast<const char*>(first);
  for (int64_t r = 0; r < rows; ++r, row += stride_bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 3);
  }
}

// Rows of words summed in one run of float32: partial sums round less than a single long sum.
constexpr int64_t max_run = 256;

// What a tile prefetches into L2 while it multiplies: `step` bytes for each row of words of its panel. With 16
// registers nothing: the hardware prefetcher is faster.
struct Ahead {
  const char* first;
  int64_t step;
};

// sums[rows, 64] (+)= a[rows, panel.rows] · panel, as float32 or int32. Not inlined: GCC 12 would keep the sums in
// memory.
template <typename Dot, int rows>
__attribute__((noinline)) void multiply_tile(
    const uint32_t* a, int64_t a_stride, const Panel& panel, bool accumulate, Ahead ahead, void* sums) {
  using Sum = typename Dot::Sum;
  constexpr int64_t w = width<float>;
  for (int64_t column = 0; column < panel_columns; column += tile_vectors * w) {
    uint32_t* const target = static_cast<uint32_t*>(sums) + column;
    const uint32_t* b = panel.words + column;
    int64_t begin = 0;
    do {
      const int64_t rest = panel.rows - begin, end = Dot::is_integer || rest <= max_run ? panel.rows : begin + max_run;
      Sum tile[rows][tile_vectors];
      for (int v = 0; v < tile_vectors; ++v) {
        Sum start{};
        if (Dot::is_integer && panel.compensation != nullptr) {
          start = bit_cast<Sum>(load_integers(panel.compensation + column + v * w));
        }
        for (int r = 0; r < rows; ++r) tile[r][v] = start;
      }
#pragma GCC unroll tile_unroll
      for (int64_t k = begin; k < end; ++k) {
        if constexpr (is_wide) {
          __builtin_prefetch(ahead.first, 0, 2);
          ahead.first += ahead.step;
        }
        Integers<float> b_row[tile_vectors];
        for (int v = 0; v < tile_vectors; ++v) b_row[v] = load_integers(b + v * w);
        for (int r = 0; r < rows; ++r) {
          const Integers<float> a_word = broadcast_word(a + r * a_stride + k);
          for (int v = 0; v < tile_vectors; ++v) Dot::add(tile[r][v], a_word, b_row[v]);
        }
        b += panel_columns;
      }
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < tile_vectors; ++v) {
          void* place = target + r * panel_columns + v * w;
          if (begin > 0 || accumulate) tile[r][v] += bit_cast<Sum>(load_integers(place));
          std::memcpy(place, &tile[r][v], sizeof(Sum));
        }
      }
      begin = end;
    } while (begin < panel.rows);
  }
}

template <typename Dot>
void multiply_tile(
    int64_t rows,
    const uint32_t* a,
    int64_t a_stride,
    const Panel& panel,
    bool accumulate,
    const Ahead& ahead,
    void* sums) {
  with_constant<6, 5, 4, 3, 2, 1>(
      rows, [&](auto count) { multiply_tile<Dot, int(count)>(a, a_stride, panel, accumulate, ahead, sums); });
}

}  // namespace vitfast::VITFAST_ISA
