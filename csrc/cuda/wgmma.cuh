// Tensor cores of sm_90a: asynchronous mma of a warpgroup (four warps, of which the first is a multiple of 4) on
// operands in shared memory.
//
// Rows of 64 elements of T (128 bytes) are stored in the layout "128-byte swizzle", which is that of SharedTile<T, 64>
// from a multiple of 1024 bytes on: 16-byte chunk c of row r is at place c ^ r % 8 of the row. One layout serves
// operands of both directions:
//
//     K major     rows are rows of A, or columns of B; a depth step of 16 elements advances the operand by 32 bytes
//     MN major    rows are depth, elements are columns of B; a depth step of 16 rows advances it by 2048 bytes
//
// Warp w has rows 16 w to 16 w + 15 of the accumulator, in fragments D of mma.m16n8 (matrix.cuh), one for 8 columns.
// Registers of A are fragments A of mma.m16n8k16. (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".)
//
// Order of calls, by all threads of the warpgroup:
//
//     writes to shared memory; publish_to_tensor_cores(); barrier
//     begin_wgmma(); wgmma...(); commit_wgmma(); wait_for_wgmma(d)

#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/common/types.h"

namespace vitfast {

constexpr int warpgroup_size = 128;
constexpr int wgmma_rows = 64;
constexpr int swizzle_alignment = 1024;  // of operands, in bytes

// An operand in shared memory; a matrix descriptor of the PTX ISA. Its "leading dimension" offset, here 0, has no
// meaning for a swizzled K major operand, nor for an MN major one of 64 columns.
struct WgmmaOperand {
  uint64_t descriptor;

  __device__ __forceinline__ explicit WgmmaOperand(const void* rows) {
    constexpr uint64_t swizzle_128_bytes = 1, eight_rows = 8 * 128;
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows));
    descriptor = swizzle_128_bytes << 62 | eight_rows / 16 << 32 | (address & 0x3ffff) / 16;
  }

  // No carry leaves the address: it is below 2^18, as shared memory is smaller.
  __device__ __forceinline__ uint64_t advanced(int bytes) const { return descriptor + unsigned(bytes / 16); }
};

// Makes this thread's writes to shared memory, cp.async included if waited for, visible to wgmma after a barrier.
__device__ __forceinline__ void publish_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The compiler computes these registers before what follows: it could otherwise move that after begin_wgmma.
template <int tiles>
__device__ __forceinline__ void finish_registers(uint32_t (&a)[tiles][2]) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) asm volatile("" : "+r"(a[tile][0]), "+r"(a[tile][1])::"memory");
}

// Orders earlier accesses to registers before those of the following wgmma.
__device__ __forceinline__ void begin_wgmma() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_wgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all committed wgmma, which write d.
template <int tiles>
__device__ __forceinline__ void wait_for_wgmma(float (&d)[tiles][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  // the compiler must not move reads of d before the wait: to it, wgmma has already written d
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[tile][i])::"memory");
  }
}

// Lists for asm: names of operands ("%0, %1, ..."; in VITFAST_2 to 10 from number 10 t on), and the accumulators of
// tiles of 8 columns.
#define VITFAST_2(t) "%" #t "0, %" #t "1"
#define VITFAST_6(t) VITFAST_2(t) ", %" #t "2, %" #t "3, %" #t "4, %" #t "5"
#define VITFAST_8(t) VITFAST_6(t) ", %" #t "6, %" #t "7"
#define VITFAST_10(t) VITFAST_8(t) ", %" #t "8, %" #t "9"
#define VITFAST_20 VITFAST_10() ", " VITFAST_10(1)
#define VITFAST_50 VITFAST_20 ", " VITFAST_10(2) ", " VITFAST_10(3) ", " VITFAST_10(4)
#define VITFAST_70 VITFAST_50 ", " VITFAST_10(5) ", " VITFAST_10(6)
#define VITFAST_100 VITFAST_70 ", " VITFAST_10(7) ", " VITFAST_10(8) ", " VITFAST_10(9)
#define VITFAST_TILE(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define VITFAST_TILES_3(t) VITFAST_TILE(t), VITFAST_TILE(t + 1), VITFAST_TILE(t + 2)
#define VITFAST_TILES_6(t) VITFAST_TILES_3(t), VITFAST_TILES_3(t + 3)
#define VITFAST_TILES_7 VITFAST_TILES_6(0), VITFAST_TILE(6)
#define VITFAST_TILES_8 VITFAST_TILES_7, VITFAST_TILE(7)
#define VITFAST_TILES_13 VITFAST_TILES_7, VITFAST_TILES_6(7)
#define VITFAST_TILES_19 VITFAST_TILES_13, VITFAST_TILES_6(13)
#define VITFAST_TILES_25 VITFAST_TILES_19, VITFAST_TILES_6(19)

// `sources`: names of the operands of A and B; `accumulates`: of the flag; `options`: factors of A and B, whether they
// are MN major; then the accumulators and inputs.
#define VITFAST_TYPED_WGMMA(type, columns, list, sources, accumulates, options, ...)                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulates ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k16.f32." type "." type " {" list "}, " sources ", p, " options ";\n}"                           \
               : __VA_ARGS__)
#define VITFAST_WGMMA(...)                    \
  if constexpr (std::is_same_v<T, Half>) {    \
    VITFAST_TYPED_WGMMA("f16", __VA_ARGS__);  \
  } else {                                    \
    VITFAST_TYPED_WGMMA("bf16", __VA_ARGS__); \
  }

// d [64, 8 tiles] = a bᵀ over a depth of 16, with K major operands; added to d if `accumulate`.
template <typename T, bool accumulate, int tiles>
__device__ __forceinline__ void wgmma_transposed(float (&d)[tiles][4], uint64_t a, uint64_t b) {
  static_assert(tiles == 7 || tiles == 13 || tiles == 19 || tiles == 25);
#define VITFAST_INPUTS "l"(a), "l"(b), "n"(int(accumulate))
#define VITFAST_OPTIONS "1, 1, 0, 0"
  if constexpr (tiles == 7) {
    VITFAST_WGMMA(
        "56", VITFAST_20 ", " VITFAST_8(2), "%28, %29", "%30", VITFAST_OPTIONS, VITFAST_TILES_7 : VITFAST_INPUTS)
  } else if constexpr (tiles == 13) {
    VITFAST_WGMMA(
        "104", VITFAST_50 ", " VITFAST_2(5), "%52, %53", "%54", VITFAST_OPTIONS, VITFAST_TILES_13 : VITFAST_INPUTS)
  } else if constexpr (tiles == 19) {
    VITFAST_WGMMA(
        "152", VITFAST_70 ", " VITFAST_6(7), "%76, %77", "%78", VITFAST_OPTIONS, VITFAST_TILES_19 : VITFAST_INPUTS)
  } else {
    VITFAST_WGMMA("200", VITFAST_100, "%100, %101", "%102", VITFAST_OPTIONS, VITFAST_TILES_25 : VITFAST_INPUTS)
  }
#undef VITFAST_OPTIONS
#undef VITFAST_INPUTS
}

// d [64, 64] = a b over a depth of 16, with a in registers and an MN major b; added to d if `accumulate`.
template <typename T, bool accumulate>
__device__ __forceinline__ void wgmma_of_registers(
    float (&d)[8][4], const uint32_t (&left)[2], const uint32_t (&right)[2], uint64_t b) {
  VITFAST_WGMMA(
      "64",
      VITFAST_20 ", " VITFAST_10(2) ", " VITFAST_2(3),
      "{%32, %33, %34, %35}, %36",
      "%37",
      "1, 1, 1",
      VITFAST_TILES_8 : "r"(left[0]),
      "r"(left[1]),
      "r"(right[0]),
      "r"(right[1]),
      "l"(b),
      "n"(int(accumulate)))
}

#undef VITFAST_2
#undef VITFAST_6
#undef VITFAST_8
#undef VITFAST_10
#undef VITFAST_20
#undef VITFAST_50
#undef VITFAST_70
#undef VITFAST_100
#undef VITFAST_TILE
#undef VITFAST_TILES_3
#undef VITFAST_TILES_6
#undef VITFAST_TILES_7
#undef VITFAST_TILES_8
#undef VITFAST_TILES_13
#undef VITFAST_TILES_19
#undef VITFAST_TILES_25
#undef VITFAST_TYPED_WGMMA
#undef VITFAST_WGMMA

}  // namespace vitfast
