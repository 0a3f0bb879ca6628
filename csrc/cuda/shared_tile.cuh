// A swizzled matrix in shared memory: fragments are loaded without bank conflicts.

#pragma once

#include <cstdint>

namespace vitfast {

// Rows consist of 16-byte chunks, each covering 4 of the 32 banks. ldmatrix reads one chunk of eight adjacent rows at a
// time, which must be in different banks. Rows at multiples of 128 bytes would conflict, so the chunk index is XORed
// with as many bits of the row index as there are rows with the same banks. The permutation repeats every 8 rows.
template <typename T, int columns_>
struct SharedTile {
  static_assert(sizeof(T) == 2 && columns_ % 16 == 0);
  static constexpr int columns = columns_;
  static constexpr int chunk_size = 16 / sizeof(T);
  static constexpr int chunks = columns / chunk_size;

  T* data;

  // Address of the 16 bytes from element [row, chunk_size * chunk] on.
  __device__ __forceinline__ T* chunk(int row, int chunk) const {
    constexpr unsigned rows_of_all_banks = chunks % 8 == 0 ? 1 : chunks % 4 == 0 ? 2 : 4;
    constexpr unsigned repeats = 8 / rows_of_all_banks;
    const int permuted = chunk ^ int(unsigned(row) / rows_of_all_banks % repeats);
    return data + (row * chunks + permuted) * chunk_size;
  }
};

}  // namespace vitfast
