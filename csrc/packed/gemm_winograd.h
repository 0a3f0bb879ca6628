// int8 GEMMs of AVX2 by Winograd's inner product ("A new algorithm for inner product", IEEE Transactions on Computers,
// 1968), exact in int16 and int32:
//
//     (a0 + b1)(a1 + b0) = a0 b0 + a1 b1 + a0 a1 + b0 b1
//
// for two words a0, a1 of a row and b0, b1 of a column, each a pair of int16. One multiplication in place of two, and
// two more additions, take as many instructions; but Zen 3 multiplies on two of its four vector units and adds on all
// of them. The sums of a0 a1 of a row and of b0 b1 of a column are subtracted beforehand, in the initial values of the
// sums.
//
// A widened panel consists of slices of 16 columns, [4, rows, 16] words: a slice stays in L1 for all rows of a chunk.

#pragma once

#include "csrc/packed/gemm_microkernel.h"

namespace vitfast::VITFAST_ISA {

#if VITFAST_VECTOR_BYTES == 32

constexpr bool has_winograd = true;
constexpr int64_t slice_columns = 2 * width<float>;
constexpr int64_t slice_rows = 4;  // of the left matrix at a time

// sums[rows, 64] (+)= a[rows, words] · slice, for its columns; at most four rows. `words`: even. `column_starts`, [16],
// and `row_starts`, `start_stride` apart: initial values; without `row_starts` sums are added to those that are there.
inline void multiply_slice(
    const uint32_t* a,
    int64_t a_stride,
    int64_t rows,
    const uint32_t* slice,
    int64_t words,
    const int32_t* column_starts,
    const int32_t* row_starts,
    int64_t start_stride,
    uint32_t* sums) {
  using I = Integers<float>;
  const I start0 = load_integers(column_starts), start1 = load_integers(column_starts + width<float>);
  I first[slice_rows], second[slice_rows];
  const uint32_t* row[slice_rows];  // the last one again where there are fewer
  for (int64_t r = 0; r < slice_rows; ++r) {
    const int64_t existing = r < rows ? r : rows - 1;
    const int32_t start = row_starts == nullptr ? 0 : row_starts[existing * start_stride];
    row[r] = a + existing * a_stride + words;
    first[r] = start0 + start;
    second[r] = start1 + start;
  }
  int64_t k = -words;
  // clang-format off
  // Registers 8 and 9 hold the words of a row, 10 and 11 the operands of the multiplication, 12 to 15 those of the slice.
#define VITFAST_ROW(R)                                    \
  "vpbroadcastd (%[row" R "], %[k], 4), %%ymm8\n\t"       \
  "vpbroadcastd 4(%[row" R "], %[k], 4), %%ymm9\n\t"      \
  "vpaddw %%ymm14, %%ymm8, %%ymm10\n\t"                   \
  "vpaddw %%ymm12, %%ymm9, %%ymm11\n\t"                   \
  "vpmaddwd %%ymm11, %%ymm10, %%ymm10\n\t"                \
  "vpaddd %%ymm10, %[first" R "], %[first" R "]\n\t"      \
  "vpaddw %%ymm15, %%ymm8, %%ymm8\n\t"                    \
  "vpaddw %%ymm13, %%ymm9, %%ymm9\n\t"                    \
  "vpmaddwd %%ymm9, %%ymm8, %%ymm8\n\t"                   \
  "vpaddd %%ymm8, %[second" R "], %[second" R "]\n\t"
  // All 16 vector registers are used; GCC 12 would keep sums in memory.
  if (words > 0) __asm__ volatile(
      "1:\n\t"
      "vmovdqu (%[slice]), %%ymm12\n\t"
      "vmovdqu 32(%[slice]), %%ymm13\n\t"
      "vmovdqu 64(%[slice]), %%ymm14\n\t"
      "vmovdqu 96(%[slice]), %%ymm15\n\t"
      VITFAST_ROW("0") VITFAST_ROW("1") VITFAST_ROW("2") VITFAST_ROW("3")
      "add $128, %[slice]\n\t"
      "add $2, %[k]\n\t"
      "jnz 1b"
      : [first0] "+x"(first[0]), [second0] "+x"(second[0]), [first1] "+x"(first[1]), [second1] "+x"(second[1]),
        [first2] "+x"(first[2]), [second2] "+x"(second[2]), [first3] "+x"(first[3]), [second3] "+x"(second[3]),
        [slice] "+r"(slice), [k] "+r"(k)
      : [row0] "r"(row[0]), [row1] "r"(row[1]), [row2] "r"(row[2]), [row3] "r"(row[3])
      : "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
  // clang-format on
#undef VITFAST_ROW
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t* const place = sums + r * panel_columns;
    if (row_starts == nullptr) {
      first[r] += load_integers(place);
      second[r] += load_integers(place + width<float>);
    }
    std::memcpy(place, &first[r], sizeof(I));
    std::memcpy(place + width<float>, &second[r], sizeof(I));
  }
}

// The same for any number of rows and all slices of a panel, whose compensation holds the columns' initial values.
inline void multiply_slices(
    const uint32_t* a,
    int64_t a_stride,
    int64_t rows,
    const Panel& panel,
    const int32_t* row_starts,
    int64_t start_stride,
    uint32_t* sums) {
  for (int64_t column = 0; column < panel_columns; column += slice_columns) {
    for (int64_t row = 0; row < rows; row += slice_rows) {
      multiply_slice(
          a + row * a_stride,
          a_stride,
          rows - row < slice_rows ? rows - row : slice_rows,
          panel.words + column * panel.rows,
          panel.rows,
          panel.compensation + column,
          row_starts == nullptr ? nullptr : row_starts + row * start_stride,
          start_stride,
          sums + row * panel_columns + column);
    }
  }
}

#else
constexpr bool has_winograd = false;
#endif

}  // namespace vitfast::VITFAST_ISA
