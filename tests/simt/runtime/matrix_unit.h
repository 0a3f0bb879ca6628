// What a GPU's matrix unit makes of a warp's registers, and how the banks of shared memory serve a warp: arithmetic on
// values that the emulation has checked. It is most of a test's work, and compiled without sanitizers in every variant.
// The fragments' layout is documented in csrc/cuda/matrix.cuh.

#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// The registers of a lane. `d`: four floats, or two pairs of halves.
struct MmaSlot {
  void* d;
  const uint32_t* a;
  uint32_t b[2];
};

// d += a b, of MmaSlots by lane.
void mma_m16n8k16_bfloat16(void* const* slots);
void mma_m16n8k16_half(void* const* slots);
void mma_m16n8k16_fp16_accumulation(void* const* slots);

// Of a lane: where its row of 16 bytes begins, and its four registers.
struct LdmatrixSlot {
  const void* row;
  uint32_t* registers;
};

// Hands four matrices, [4][8][8], to the registers of LdmatrixSlots by lane.
void distribute_matrices(const uint16_t (*matrices)[8][8], bool transposed, void* const* slots);

// Counts the cycles beyond one that `count` places of `bytes` bytes need, 128 together: one for each that shares its
// banks with another.
void count_bank_conflicts(const void* const* places, int count, size_t bytes);
uint64_t bank_conflicts();

}  // namespace simt
