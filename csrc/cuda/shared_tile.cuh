// A matrix in shared memory whose fragments are read without bank conflicts.

#pragma once

#include <cstdint>

namespace vitfast {

// Rows of `columns` elements, in chunks of 16 bytes, which fill 4 of the 32 banks. ldmatrix reads one chunk of eight
// neighbouring rows at a time; they must lie in different banks. Rows that are a multiple of 128 bytes apart would
// share theirs, so chunks are permuted within a row: the number of a chunk is exclusive-ored with as many bits of the
// row's number as rows repeat their banks. The permutation repeats every 8 rows.
//
// Columns are a multiple of 16; of 32 for elements of 32 bits, of which load_element reads eight neighbours in each of
// four rows, all even or all odd: two whole chunks a row, which are then apart, too.
template <typename T, int columns_>
struct SharedTile {
  static_assert(sizeof(T) == 2 ? columns_ % 16 == 0 : sizeof(T) == 4 && columns_ % 32 == 0);
  static constexpr int columns = columns_;
  static constexpr int chunk_size = 16 / sizeof(T);
  static constexpr int chunks = columns / chunk_size;

  T* data;

  // The 16 bytes from element [row, chunk_size * chunk] on.
  __device__ __forceinline__ T* chunk(int row, int chunk) const {
    constexpr unsigned rows_of_all_banks = chunks % 8 == 0 ? 1 : chunks % 4 == 0 ? 2 : 4;
    constexpr unsigned repeats = 8 / rows_of_all_banks;
    const int permuted = chunk ^ int(unsigned(row) / rows_of_all_banks % repeats);
    return data + (row * chunks + permuted) * chunk_size;
  }
};

}  // namespace vitfast
