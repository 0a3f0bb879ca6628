// Arguments of the GEMM kernels that round their accumulator.

#pragma once

#include <stdexcept>

#include "csrc/common/chunks.h"
#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

// out = x weightᵀ; matrices are contiguous.
template <typename T, typename R>
struct ChunkedGemm {
  const T* x;       // [rows, depth]
  const T* weight;  // [columns, depth]
  float* out;       // [rows, columns]
  int64_t rows, columns, depth;
  int64_t chunk;  // number of products that are summed before the accumulator is rounded
  R rounding;     // of the accumulator
};

// Per element, in ascending k: fused multiply-adds within a chunk, starting at 0, then accumulator = round(accumulator
// + sum).
using MatmulAccumulate = ChunkedGemm<float, FloatRounding>;

// The same with chunks summed in Half by tensor cores: accumulator += sum in float after every chunk and at the end,
// rounded to Half if `rounding`. `depth` is a multiple of 8 (rows are read in 16-byte packs), `chunk` of 16.
using MatmulFp16Accumulation = ChunkedGemm<Half, bool>;
constexpr int fp16_accumulation_step = 16;  // depth of an mma

// Number of CUDA blocks for a grid of result tiles.
inline int64_t count_result_blocks(int64_t row_tiles, int64_t column_tiles) {
  if (row_tiles * column_tiles > INT32_MAX) {
    throw std::runtime_error("matmul_accumulate: the results need more than 2^31 - 1 blocks");
  }
  return row_tiles * column_tiles;
}

}  // namespace vitfast
