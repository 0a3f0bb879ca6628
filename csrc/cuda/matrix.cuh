// Tensor cores: fragment loads from shared memory (ldmatrix) and mma.sync, for sm_80 and newer.
//
// A fragment is a small matrix distributed over the registers of a warp. With g = lane / 4 and t = lane % 4:
//
//     A [16, 16], T     a0: [g, 2t] [g, 2t+1]        a2: [g, 2t+8] [g, 2t+9]
//                       a1: [g+8, 2t] [g+8, 2t+1]    a3: [g+8, 2t+8] [g+8, 2t+9]
//     B [16, 8], T      b0: [2t, g] [2t+1, g]        b1: [2t+8, g] [2t+9, g]
//     C, D [16, 8]      float: d0: [g, 2t]  d1: [g, 2t+1]  d2: [g+8, 2t]  d3: [g+8, 2t+1]
//                       half:  d0: [g, 2t] [g, 2t+1]       d1: [g+8, 2t] [g+8, 2t+1]
//
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".) T is Half or BFloat16, two per register, the
// first in the lower half. All lanes of the warp must call these functions.

#pragma once

#include <cstdint>

#include "csrc/common/types.h"

namespace vitfast {

// Loads four 8 x 8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix l / 8: 16 aligned
// bytes in shared memory. Register m of a lane receives elements [g, 2t] and [g, 2t+1] of matrix m.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&registers)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// The same with every matrix transposed: register m receives elements [2t, g] and [2t+1, g].
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&registers)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// d += a b, accumulated in float.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b on Half, accumulated in Half. Intermediate rounding depends on the GPU generation
// (docs/internals/cuda_gemm.md).
__device__ __forceinline__ void mma_m16n8k16_fp16_accumulation(
    uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace vitfast
