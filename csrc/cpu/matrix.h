// Small matrices that stay in the cache: packing, transposition and GEMM, for attention.
//
// A packed matrix is row-major in the accumulation type C; its rows are padded with zeros to whole vectors.

#pragma once

#include <utility>

#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

template <typename C>
constexpr int64_t padded(int64_t size) {
  return (size + width<C> - 1) / width<C> * width<C>;
}

// packed[i][j] = factor * rows[i * stride + j]
template <typename C, typename T>
void pack_rows(const T* rows, int64_t stride, int64_t count, int64_t size, C factor, C* packed) {
  const int64_t packed_stride = padded<C>(size);
  for (int64_t i = 0; i < count; ++i) {
    for_each_vector<C>(size, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      store(packed + i * packed_stride + j, load_up_to<C>(rows + i * stride + j, n) * factor);
    });
  }
}

// Exchanges lane l of `low` with lane l - distance of `high` for the lanes l that have the bit `distance`.
template <typename C, int distance, size_t... lanes>
VITFAST_INLINE void exchange(Vector<C>& low, Vector<C>& high, std::index_sequence<lanes...>) {
  constexpr int w = int(width<C>);
  const Vector<C> a = low, b = high;
#if defined(__clang__)
  low = __builtin_shufflevector(a, b, ((int(lanes) & distance) ? w + int(lanes) - distance : int(lanes))...);
  high = __builtin_shufflevector(a, b, ((int(lanes) & distance) ? w + int(lanes) : int(lanes) + distance)...);
#else
  low = __builtin_shuffle(a, b, Integers<C>{((int(lanes) & distance) ? w + int(lanes) - distance : int(lanes))...});
  high = __builtin_shuffle(a, b, Integers<C>{((int(lanes) & distance) ? w + int(lanes) : int(lanes) + distance)...});
#endif
}

// Transposes the square of width x width elements whose rows are the given vectors.
template <typename C, int distance = int(width<C>) / 2>
VITFAST_INLINE void transpose(Vector<C>* square) {
  for (int i = 0; i < int(width<C>); ++i) {
    if ((i & distance) == 0) {
      exchange<C, distance>(square[i], square[i + distance], std::make_index_sequence<size_t(width<C>)>());
    }
  }
  if constexpr (distance > 1) transpose<C, distance / 2>(square);
}

// packed[j * packed_stride + i] = rows[i * stride + j] for the first vector of `count` rows, padded with zeros.
template <typename C, typename T>
VITFAST_INLINE void transpose_vector(
    const T* rows, int64_t stride, int64_t count, int64_t size, C* packed, int64_t packed_stride) {
  constexpr int64_t w = width<C>;
  for_each_vector<C>(size, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    Vector<C> square[w];
    for (int64_t r = 0; r < w; ++r) square[r] = r < count ? load_up_to<C>(rows + r * stride + j, n) : Vector<C>{};
    transpose<C>(square);
    for (int64_t r = 0; r < n; ++r) store(packed + (j + r) * packed_stride, square[r]);
  });
}

// packed[j][i] = rows[i * stride + j]
template <typename C, typename T>
void pack_transposed(const T* rows, int64_t stride, int64_t count, int64_t size, C* packed) {
  for (int64_t i = 0; i < count; i += width<C>) {
    transpose_vector(rows + i * stride, stride, count - i, size, packed + i, padded<C>(count));
  }
}

// --- out[i][j] (+)= Σ_k a[i * a_row + k * a_depth] * b[k * b_stride + j] ---

// 6 x 4 accumulators, 4 vectors of b and a broadcast fill the 32 registers of AVX-512; half as wide fits 16 registers.
constexpr int max_tile_rows = 6;
constexpr int max_tile_vectors = VITFAST_VECTOR_BYTES == 64 ? 4 : 2;
// Rows of b summed before the sum is added to out: they stay in the cache for all rows of a, and partial sums round
// less than a single long sum.
constexpr int64_t max_depth = 256;

template <typename C>
struct Gemm {
  int64_t depth;
  const C* a;
  int64_t a_row, a_depth;
  const C* b;
  int64_t b_stride;
  C* out;
  int64_t out_stride;
  bool accumulate;
};

template <typename C, int rows, int vectors>
VITFAST_INLINE void multiply_tile(const Gemm<C>& p, const C* a, const C* b, C* out) {
  Vector<C> sums[rows][vectors];
  // explicit unrolling: GCC would emit a memset and keep the sums in memory
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vector<C>{};
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    Vector<C> b_row[vectors];
    for (int v = 0; v < vectors; ++v) b_row[v] = load(b + k * p.b_stride + v * width<C>);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vector<C> a_value = broadcast(a[r * p.a_row + k * p.a_depth]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] += a_value * b_row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      C* target = out + r * p.out_stride + v * width<C>;
      store(target, p.accumulate ? load(target) + sums[r][v] : sums[r][v]);
    }
  }
}

template <typename C, int vectors>
void multiply_columns(const Gemm<C>& p, int64_t rows, const C* b, C* out) {
  int64_t i = 0;
  for (; i + max_tile_rows <= rows; i += max_tile_rows) {
    multiply_tile<C, max_tile_rows, vectors>(p, p.a + i * p.a_row, b, out + i * p.out_stride);
  }
  const C* a = p.a + i * p.a_row;
  out += i * p.out_stride;
  with_constant<5, 4, 3, 2, 1>(rows - i, [&](auto rest) { multiply_tile<C, int(rest), vectors>(p, a, b, out); });
}

// `columns` counts elements and is a multiple of the vectors' width.
template <typename C>
void multiply(Gemm<C> p, int64_t rows, int64_t columns) {
  const int64_t vectors = columns / width<C>;
  const int64_t panels = (vectors + max_tile_vectors - 1) / max_tile_vectors;
  const int64_t whole_depth = p.depth;
  for (int64_t k = 0; k < whole_depth || k == 0; k += max_depth) {
    p.depth = whole_depth - k < max_depth ? whole_depth - k : max_depth;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * vectors / panels;  // panels of nearly the same width
      const int64_t last = (panel + 1) * vectors / panels;
      const C* b = p.b + first * width<C>;
      C* out = p.out + first * width<C>;
      with_constant<4, 3, 2, 1>(last - first, [&](auto count) {
        if constexpr (count <= max_tile_vectors) multiply_columns<C, int(count)>(p, rows, b, out);
      });
    }
    p.a += max_depth * p.a_depth;
    p.b += max_depth * p.b_stride;
    p.accumulate = true;
  }
}

}  // namespace vitfast::VITFAST_ISA
