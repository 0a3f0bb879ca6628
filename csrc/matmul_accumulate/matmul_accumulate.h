// What the tensor functions ask of the kernels of products whose accumulator is rounded.

#pragma once

#include "csrc/common/float_format.h"

namespace vitfast {

// Contiguous matrices. For each result, k ascending: fused multiply-adds from 0 within a chunk, then accumulator =
// round(accumulator + sum), from 0.
struct MatmulAccumulate {
  const float* x;       // [rows, depth]
  const float* weight;  // [columns, depth]
  float* out;           // [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t depth;
  int64_t chunk;           // products that are summed before the accumulator is rounded
  FloatRounding rounding;  // of the accumulator
};

}  // namespace vitfast
