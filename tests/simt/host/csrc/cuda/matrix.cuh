// Reads and registers of a warp's products; the products themselves are computed by tests/simt/runtime/matrix_unit.cpp.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/cuda/numbers.cuh"
#include "tests/simt/runtime/matrix_unit.h"
#include "tests/simt/runtime/simt.h"

namespace vitfast {
namespace host {

template <bool transposed>
void ldmatrix_x4_of_warp(void* const* slots) {
  const void* rows[32];
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    rows[lane] = static_cast<const simt::LdmatrixSlot*>(slots[lane])->row;
    simt::note_warp_read(rows[lane], 16);
    std::memcpy(matrices[lane / 8][lane % 8], rows[lane], 16);
  }
  for (int m = 0; m < 4; ++m) simt::count_bank_conflicts(rows + 8 * m, 8, 16);
  simt::distribute_matrices(matrices, transposed, slots);
}

template <bool transposed>
void ldmatrix_x4(uint32_t (&registers)[4], const void* row, simt::Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    simt::fail(site, "ldmatrix from an address that is no multiple of 16");
  simt::LdmatrixSlot slot{row, registers};
  simt::with_warp(ldmatrix_x4_of_warp<transposed>, &slot, site);
}

}  // namespace host

inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row, simt::Site site = simt::Site::here()) {
  host::ldmatrix_x4<false>(registers, row, site);
}

inline void ldmatrix_x4_transposed(uint32_t (&registers)[4], const void* row, simt::Site site = simt::Site::here()) {
  host::ldmatrix_x4<true>(registers, row, site);
}

template <typename T>
inline void mma_m16n8k16(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, simt::Site site = simt::Site::here()) {
  constexpr bool is_half = std::is_same_v<T, Half>;
  static_assert(is_half || std::is_same_v<T, BFloat16>);
  simt::MmaSlot slot{d, a, {b0, b1}};
  simt::with_warp(is_half ? simt::mma_m16n8k16_half : simt::mma_m16n8k16_bfloat16, &slot, site);
}

inline void mma_m16n8k16_fp16_accumulation(
    uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, simt::Site site = simt::Site::here()) {
  simt::MmaSlot slot{d, a, {b0, b1}};
  simt::with_warp(simt::mma_m16n8k16_fp16_accumulation, &slot, site);
}

}  // namespace vitfast
