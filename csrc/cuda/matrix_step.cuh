// One depth step of a GEMM, d += a b with float accumulation, for every element type.
//
// Half and BFloat16: one mma over a depth of 16.
//
// float: tensor cores use 11 of the 24 significant bits. An element is split as x = high + low, both with 11 bits,
// exact to one ulp of x, and
//
//     a b = high high + (high low + low high) + low low
//
// takes three mma over a depth of 8, small terms first; low low is of the order of the rounding error of a b and is
// omitted (3xTF32). The rounding of tensor-core accumulation is undocumented; measurements show truncation (Fasi et
// al., "Numerical behavior of NVIDIA tensor cores", 2021), which biases long sums toward zero (Ootomo and Yokota,
// "Recovering single precision accuracy from Tensor Cores", 2022). Each step therefore starts at zero and is added with
// round-to-nearest.

#pragma once

#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"

namespace vitfast {

// Left and Right are operands prepared from the fragments of A and B in matrix.cuh.
template <typename T>
struct MatrixStep {
  static constexpr int tile_registers = 2;  // of A, per 8 columns
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

  // Sets columns 2t and 2t + 1 of row g (half 0) or g + 8 (half 1) in 8 columns of A, from the layout of C.
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

  // The registers of A hold columns t and t + 4; columns 2t and 2t + 1 are stored there, and rows of B must be permuted
  // accordingly.
  static __device__ __forceinline__ void set_columns(
      uint32_t (&a)[tile_registers], int half, float first, float second) {
    a[half] = bits_of(first);
    a[2 + half] = bits_of(second);
  }

 private:
  // `high` is rounded to nearest, ties away from zero; `low` has 12 bits and is truncated to 11. `low` is NaN if the
  // element is NaN or infinite.
  static __device__ __forceinline__ void split_element(uint32_t bits, uint32_t& high, uint32_t& low) {
    constexpr uint32_t half_unit = 0x1000, unread = 0x1fff;
    high = (bits + half_unit) & ~unread;
    low = bits_of(from_bits(bits) - from_bits(high)) & ~unread;
  }
};

}  // namespace vitfast
