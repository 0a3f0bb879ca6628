// From the arguments of matmul_accumulate to the instance of its kernel.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"
#include "csrc/matmul_accumulate/matmul_fp16_accumulation_kernel.cuh"

namespace vitfast {

// How results are shared among blocks that compute rows x columns of them, column by column.
struct ResultBlocks {
  int64_t across, all;

  ResultBlocks(int64_t rows, int64_t columns, int block_rows, int block_columns)
      : across((columns + block_columns - 1) / block_columns), all((rows + block_rows - 1) / block_rows * across) {
    if (all > INT32_MAX) throw std::runtime_error("matmul_accumulate: the results need more than 2^31 - 1 blocks");
  }
};

inline void launch_matmul_accumulate(const MatmulAccumulate& a, Stream stream) {
  using Shape = AccumulateShape;
  const ResultBlocks blocks(a.rows, a.columns, Shape::tile, Shape::tile);
  if (blocks.all == 0) return;
  with_rule(a.rounding.rounding, [&](auto rule) {
    if constexpr (rule == Rounding::stochastic) {
      throw std::runtime_error("matmul_accumulate: the accumulator is not rounded stochastically");
    } else {
      const auto kernel = matmul_accumulate_kernel<rule>;
      const auto rounding = rule_rounding<rule>(&a.rounding);
      launch(kernel, blocks.all, Shape::threads, Shape::shared_bytes_asked, stream, a, rounding, blocks.across);
    }
  });
}

inline void launch_matmul_fp16_accumulation(const MatmulFp16Accumulation& a, Stream stream) {
  using Shape = Fp16AccumulationShape;
  if (a.depth % 8 != 0 || a.chunk <= 0 || a.chunk % Shape::step != 0) {
    throw std::runtime_error("matmul_half_sums: the CUDA kernel takes depths by 8 and chunks by 16");
  }
  const ResultBlocks blocks(a.rows, a.columns, Shape::rows, Shape::columns);
  if (blocks.all == 0) return;
  const auto kernel =
      a.rounds_accumulator ? matmul_fp16_accumulation_kernel<true> : matmul_fp16_accumulation_kernel<false>;
  launch(kernel, blocks.all, Shape::threads, Shape::shared_bytes_asked, stream, a, blocks.across);
}

}  // namespace vitfast
