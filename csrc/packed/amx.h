// AMX: eight tiles of 16 rows of 64 bytes, and products of two of them.
//
// A product takes 16 rows of 16 words on the left and 16 rows of 16 words of a panel on the right, and adds to 16 rows
// of 16 sums: 16 cycles. The words are those of csrc/packed/dot.h.

#pragma once

#if defined(__AMX_TILE__)

#include <immintrin.h>

#include <cstdint>

#include "csrc/packed/packed.h"

namespace vitfast::VITFAST_ISA {

constexpr int64_t amx_rows = 16;   // of a tile
constexpr int64_t amx_words = 16;  // of a row

// While it lives, this thread's eight tiles are whole. Registers in use would make every switch of threads slower, so
// they are given back.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    _tile_loadconfig(&configuration);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace vitfast::VITFAST_ISA

#endif
