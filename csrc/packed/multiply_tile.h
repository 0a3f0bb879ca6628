// The microkernel: up to 6 rows of the left matrix times a panel of 64 columns, over one group of inputs.
//
// 24 sums (6 rows, 4 vectors), 4 vectors of the panel and a broadcast fill the 32 registers of AVX-512. With 16
// registers a pass takes 2 vectors, so a panel takes several passes over the rows' words, and the loop is unrolled:
// there its own instructions count. Every row's sums are formed in the same order whatever the number of rows: results
// do not depend on how rows are split.

#pragma once

#include "csrc/packed/dot.h"
#include "csrc/packed/packed.h"

namespace vitfast::VITFAST_ISA {

constexpr int tile_rows = 6;
constexpr bool is_wide = VITFAST_VECTOR_BYTES == 64;
constexpr int tile_vectors = is_wide ? 4 : 2;
constexpr int tile_unroll = is_wide ? 1 : 4;

// Rows of the left matrix that a dot takes at a time.
template <typename Dot>
constexpr int64_t rows_at_once = tile_rows;

template <typename Dot>
constexpr int64_t tile_size = rows_at_once<Dot> * panel_columns;

// One group of a panel, or a part of its rows.
struct Panel {
  const uint32_t* words;  // [rows, 64]
  int64_t rows;
  const int32_t* compensation;  // [64], what integer sums start from, or null
  const uint32_t* tail;         // of tiles: the last rows % 16 rows and zeros
};

// Fetches a few columns of rows that lie too far apart for the processor to foresee. Lines to be written, too: stores
// that miss the cache wait for each other.
inline void prefetch_rows(const void* first, int64_t stride_bytes, int64_t rows, int64_t bytes) {
  const char* row = static_cast<const char*>(first);
  for (int64_t r = 0; r < rows; ++r, row += stride_bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 3);
  }
}

// Rows of words whose float32 sum is formed in one go: a long sum in parts loses less than one that runs through.
constexpr int64_t max_run = 256;

// sums[rows, 64] = a[rows, panel.rows] · panel, as float32 or int32; or that is added to them. `ahead`: a line of 64
// bytes in each 256 is fetched from there into the second-level cache, for the tiles to come; or null. (With 16
// registers the processor's own fetching is better.) Not inlined: among its callers' variables GCC 12 keeps the sums in
// memory.
template <typename Dot, int rows>
__attribute__((noinline)) void multiply_tile(
    const uint32_t* a, int64_t a_stride, const Panel& panel, bool accumulate, const char* ahead, void* sums) {
  using Sum = typename Dot::Sum;
  constexpr int64_t w = width<float>;
  const intptr_t distance =
      ahead == nullptr ? 0 : reinterpret_cast<intptr_t>(ahead) - reinterpret_cast<intptr_t>(panel.words);
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
        if constexpr (is_wide) __builtin_prefetch(reinterpret_cast<const char*>(b) + distance, 0, 2);
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
    const char* ahead,
    void* sums) {
  switch (rows) {
    case 6:
      return multiply_tile<Dot, 6>(a, a_stride, panel, accumulate, ahead, sums);
    case 5:
      return multiply_tile<Dot, 5>(a, a_stride, panel, accumulate, ahead, sums);
    case 4:
      return multiply_tile<Dot, 4>(a, a_stride, panel, accumulate, ahead, sums);
    case 3:
      return multiply_tile<Dot, 3>(a, a_stride, panel, accumulate, ahead, sums);
    case 2:
      return multiply_tile<Dot, 2>(a, a_stride, panel, accumulate, ahead, sums);
    case 1:
      return multiply_tile<Dot, 1>(a, a_stride, panel, accumulate, ahead, sums);
  }
}

}  // namespace vitfast::VITFAST_ISA
