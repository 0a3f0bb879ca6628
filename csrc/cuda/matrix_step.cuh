// The step in which products of matrices go along their depth, d += a b with sums in float, for every type of elements.
//
// Half and BFloat16: one product of the matrix unit, over a depth of 16.
//
// float: the unit takes 11 of its 24 significant bits. An element is split, x = high + low, both with 11 bits but for
// at most a unit in x's last place, and
//
//     a b = high high + (high low + low high) + low low
//
// is three products over a depth of 8, of which the small ones come first; low low is a rounding error of a b and is
// left out. What the unit rounds in its sums is not documented: it has been measured to cut off (Fasi et al.,
// "Numerical behavior of NVIDIA tensor cores", 2021), which over a long depth adds up to a shrinking result (Ootomo and
// Yokota, "Recovering single precision accuracy from Tensor Cores", 2022). So each step begins at zero, and what goes
// on along the depth is a sum that is rounded to nearest.

#pragma once

#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// Operands are what a step takes of the fragments of A and B that matrix.cuh shows.
template <typename T>
struct MatrixStep {
  static constexpr int tile_registers = 2;  // of A, for each 8 columns
  static constexpr int unrolled = 16;

  struct Left {
    uint32_t registers[4];
  };
  struct Right {
    uint32_t registers[2];
  };

  static __device__ __forceinline__ Left left(const uint32_t (&a)[4]) { return {{a[0], a[1], a[2], a[3]}}; }
  static __device__ __forceinline__ Right right(uint32_t b0, uint32_t b1) { return {{b0, b1}}; }
  static __device__ __forceinline__ void add(float (&d)[4], const Left& a, const Right& b) {
    mma_m16n8k16<T>(d, a.registers, b.registers[0], b.registers[1]);
  }

  // Columns 2t and 2t + 1 of row g (half 0), or g + 8, of 8 columns of A, as a fragment of C has them.
  static __device__ __forceinline__ void set_columns(
      uint32_t (&a)[tile_registers], int half, float first, float second) {
    a[half] = round_to_pair<T>(first, second);
  }
};

template <>
struct MatrixStep<float> {
  static constexpr int tile_registers = 4;
  static constexpr int unrolled = 1;

  struct Left {
    uint32_t high[4], low[4];
  };
  struct Right {
    uint32_t high[2], low[2];
  };

  static __device__ __forceinline__ Left left(const uint32_t (&a)[4]) {
    Left split;
#pragma unroll
    for (int i = 0; i < 4; ++i) split_element(a[i], split.high[i], split.low[i]);
    return split;
  }

  static __device__ __forceinline__ Right right(uint32_t b0, uint32_t b1) {
    Right split;
    split_element(b0, split.high[0], split.low[0]);
    split_element(b1, split.high[1], split.low[1]);
    return split;
  }

  static __device__ __forceinline__ void add(float (&d)[4], const Left& a, const Right& b) {
    float step[4] = {};
    mma_m16n8k8_tf32(step, a.low, b.high);
    mma_m16n8k8_tf32(step, a.high, b.low);
    mma_m16n8k8_tf32(step, a.high, b.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += step[i];
  }

  // A fragment of A has columns t and t + 4: they are taken for 2t and 2t + 1, and so must be the rows of B.
  static __device__ __forceinline__ void set_columns(
      uint32_t (&a)[tile_registers], int half, float first, float second) {
    a[half] = bits_of(first);
    a[2 + half] = bits_of(second);
  }

 private:
  // `high` is the nearest number, ties away from zero; of `low`, which has 12 bits, the last one is cut off. A NaN
  // stays one in `low`, and an infinity becomes one.
  static __device__ __forceinline__ void split_element(uint32_t bits, uint32_t& high, uint32_t& low) {
    constexpr uint32_t half_unit = 0x1000, unread = 0x1fff;
    high = (bits + half_unit) & ~unread;
    low = bits_of(from_bits(bits) - from_bits(high)) & ~unread;
  }
};

}  // namespace vitfast
