// The gradients of what follows a product's sum, where no product follows: what is asked of the kernel on CUDA.
//
//     out = scale * activation(sum), sum = x weightᵀ + bias
//
//     grad_sum   = grad_out * scale * activation'(sum)
//     grad_bias  = sums of grad_sum's columns
//     grad_scale = sums of the columns of grad_out * activation(sum)

#pragma once

#include <cstdint>

#include "csrc/linear/gemm.h"

namespace vitfast {

// Matrices are row by row without gaps, on 16-byte boundaries; columns are a multiple of 8.
struct EpilogueGradient {
  const void* grad_out;  // [rows, columns]
  const void* sum;       // [rows, columns] or null: neither activation nor scale
  const void* scale;     // [columns] or null: 1
  void* grad_sum;        // [rows, columns] or null: it is grad_out
  float* partial_bias;   // [chunks, columns] or null: each chunk of rows writes its own sums
  float* partial_scale;  // [chunks, columns] or null
  int64_t rows;
  int64_t columns;
  int64_t rows_per_chunk;
  EpilogueActivation activation;
};

}  // namespace vitfast
