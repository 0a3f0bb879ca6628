// AMX: eight tiles of 16 rows of 64 bytes, and their matrix multiplication.
//
// One instruction multiplies 16 rows of 16 words on the left by 16 rows of 16 words of a panel and accumulates 16 rows
// of 16 sums, in 16 cycles. csrc/packed/gemm_microkernel.h describes the words.

#pragma once

#include "csrc/packed/epilogue.h"

namespace vitfast::VITFAST_ISA {

// Work interleaved with the AMX instructions, a part per step: the epilogue of the previous tile, and prefetching the
// next panel into L2.
struct InterleavedWork {
  FinishRows finish;
  Tile tile;
  int64_t next_row, rows_a_step;
  int64_t buffer;  // of two: the buffer of the next sums
  const char* next_line;
  int64_t lines_a_step;

  VITFAST_INLINE void step() {
    const char* const last = next_line + lines_a_step * 64;
    for (; next_line < last; next_line += 64) __builtin_prefetch(next_line, 0, 2);
    finish_until(next_row + rows_a_step);
  }
  VITFAST_INLINE void finish_until(int64_t row) {
    const int64_t end = row < tile.rows ? row : tile.rows;
    if (next_row < end) finish(tile, next_row, end);
    next_row = end;
  }
};

#if defined(__AMX_TILE__)

constexpr int64_t amx_rows = 16;   // of a tile
constexpr int64_t amx_words = 16;  // of a row

// Operand of ldtilecfg: eight full tiles.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the tiles of this thread for its lifetime. They are released afterwards: tiles in use make every context
// switch slower.
class TileRegisters {
 public:
  TileRegisters() {
    // static: GCC 12 assumes that only 8 bytes are read and would not initialize the rest of a local variable
    static constexpr TileConfiguration whole_tiles;
    _tile_loadconfig(&whole_tiles);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// The compiler assumes that the tile loads of <immintrin.h> are independent of stores to memory.
template <int tile>
VITFAST_INLINE void load_tile(const void* p, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride_bytes), "i"(tile) : "memory");
}

template <int tile>
VITFAST_INLINE void store_tile(void* p, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride_bytes), "i"(tile) : "memory");
}

template <int tile>
VITFAST_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// sum += left · right
template <int sum, int left, int right>
VITFAST_INLINE void multiply_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
}

// left is unsigned, right is signed
template <int sum, int left, int right>
VITFAST_INLINE void multiply_int8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
}

// Tiles 0 to 3 are the sums of two tiles of rows (4, 5) and two of columns (6, 7).
struct BFloat16TileDot {
  static constexpr bool is_integer = false;
  template <int rows, int columns>
  static VITFAST_INLINE void add() {
    multiply_bfloat16<2 * rows + columns, 4 + rows, 6 + columns>();
  }
};

struct Int8TileDot {
  static constexpr bool is_integer = true;
  template <int rows, int columns>
  static VITFAST_INLINE void add() {
    multiply_int8<2 * rows + columns, 4 + rows, 6 + columns>();
  }
};

template <>
inline constexpr int64_t rows_at_once<BFloat16TileDot> = 2 * amx_rows;
template <>
inline constexpr int64_t rows_at_once<Int8TileDot> = 2 * amx_rows;

// Copies the last rows of a panel that do not fill a tile, padded with zeros.
inline void copy_tail(const uint32_t* words, int64_t rows, uint32_t* tail) {
  const int64_t rest = rows % amx_words;
  if (rest == 0) return;
  std::memcpy(tail, words + (rows - rest) * panel_columns, size_t(rest * panel_columns) * sizeof(uint32_t));
  std::memset(tail + rest * panel_columns, 0, size_t((amx_words - rest) * panel_columns) * sizeof(uint32_t));
}

// One step of 16 words: a[16 or 32 rows] · b[16 rows, 32 columns].
template <typename Dot, bool has_second_rows>
VITFAST_INLINE void add_step(const uint32_t* a, int64_t a_stride, const uint32_t* b) {
  load_tile<6>(b, panel_columns * 4);
  load_tile<4>(a, a_stride * 4);
  Dot::template add<0, 0>();
  load_tile<7>(b + amx_words, panel_columns * 4);
  Dot::template add<0, 1>();
  if constexpr (has_second_rows) {
    load_tile<5>(a + amx_rows * a_stride, a_stride * 4);
    Dot::template add<1, 0>();
    Dot::template add<1, 1>();
  }
}

// Words of half a panel and of the rows that fit L1 together.
constexpr int64_t cached_words = 192;

// Steps of a panel, for both halves of its columns; one for a panel without rows.
inline int64_t tile_steps(int64_t rows) {
  return rows == 0 ? 1 : 2 * ceil_div(rows, amx_words);
}

template <typename Dot, bool has_second_rows>
void multiply_by_tiles(
    const uint32_t* a, int64_t a_stride, const Panel& panel, uint32_t* sums, InterleavedWork& other) {
  constexpr int64_t line = panel_columns * 4, below = amx_rows * panel_columns;
  int64_t begin = 0;
  do {
    const int64_t end = begin + cached_words < panel.rows ? begin + cached_words : panel.rows;
    for (int64_t column = 0; column < panel_columns; column += 2 * amx_words) {
      uint32_t* const target = sums + column;
      if (begin > 0) {
        load_tile<0>(target, line);
        load_tile<1>(target + amx_words, line);
        if constexpr (has_second_rows) {
          load_tile<2>(target + below, line);
          load_tile<3>(target + below + amx_words, line);
        }
      } else if (panel.compensation != nullptr) {  // the same line for all rows
        load_tile<0>(panel.compensation + column, 0);
        load_tile<1>(panel.compensation + column + amx_words, 0);
        load_tile<2>(panel.compensation + column, 0);
        load_tile<3>(panel.compensation + column + amx_words, 0);
      } else {
        clear_tile<0>();
        clear_tile<1>();
        clear_tile<2>();
        clear_tile<3>();
      }
      int64_t k = begin;
      for (; k + amx_words <= end; k += amx_words) {
        add_step<Dot, has_second_rows>(a + k, a_stride, panel.words + k * panel_columns + column);
        other.step();
      }
      if (k < end) add_step<Dot, has_second_rows>(a + k, a_stride, panel.tail + column);
      store_tile<0>(target, line);
      store_tile<1>(target + amx_words, line);
      if constexpr (has_second_rows) {
        store_tile<2>(target + below, line);
        store_tile<3>(target + below + amx_words, line);
      }
    }
    begin = end;
  } while (begin < panel.rows);
}

// sums[rows, 64] = a[rows, panel.rows] · panel, as float32 or int32. Reads and writes 16 or 32 rows.
template <typename Dot>
void multiply_by_tiles(
    int64_t rows, const uint32_t* a, int64_t a_stride, const Panel& panel, float* sums, InterleavedWork& other) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(sums);
  if (rows > amx_rows) return multiply_by_tiles<Dot, true>(a, a_stride, panel, words, other);
  multiply_by_tiles<Dot, false>(a, a_stride, panel, words, other);
}

#else  // never called

inline void copy_tail(const uint32_t*, int64_t, uint32_t*) {}
inline int64_t tile_steps(int64_t) {
  return 1;
}
template <typename Dot>
void multiply_by_tiles(
    int64_t rows, const uint32_t* a, int64_t a_stride, const Panel& panel, float* sums, InterleavedWork& other);

#endif

}  // namespace vitfast::VITFAST_ISA
