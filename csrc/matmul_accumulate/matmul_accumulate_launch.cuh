// From the arguments of matmul_accumulate to the instance of its kernel.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"

namespace vitfast {

inline void launch_matmul_accumulate(const MatmulAccumulate& a, Stream stream) {
  using Shape = AccumulateShape;
  const int64_t row_tiles = (a.rows + Shape::tile - 1) / Shape::tile;
  const int64_t column_tiles = (a.columns + Shape::tile - 1) / Shape::tile;
  const int64_t blocks = row_tiles * column_tiles;
  if (blocks == 0) return;
  if (blocks > INT32_MAX) {
    throw std::runtime_error("matmul_accumulate: the CUDA kernel takes up to 2^31 - 1 tiles of 64 x 64 results");
  }
  with_rule(a.rounding.rounding, [&](auto rule) {
    if constexpr (rule == Rounding::stochastic) {
      throw std::runtime_error("matmul_accumulate: the accumulator is not rounded stochastically");
    } else {
      const auto kernel = matmul_accumulate_kernel<rule>;
      const auto rounding = rule_rounding<rule>(&a.rounding);
      launch(kernel, blocks, Shape::threads, Shape::shared_bytes_asked, stream, a, rounding, column_tiles);
    }
  });
}

}  // namespace vitfast
