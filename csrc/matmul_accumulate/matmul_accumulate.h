// What the tensor functions ask of the kernels of products whose accumulator is rounded.

#pragma once

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

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

// The same with a chunk summed in Half by the matrix unit: accumulator += sum in float after every chunk and behind the
// last product, rounded to Half where asked for.
struct MatmulFp16Accumulation {
  const Half* x;       // [rows, depth]
  const Half* weight;  // [columns, depth]
  float* out;          // [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t depth;  // a multiple of 8: rows are read 16 bytes at a time
  int64_t chunk;  // a multiple of 16
  bool rounds_accumulator;
};

}  // namespace vitfast
