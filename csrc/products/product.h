// Products with a fused epilogue on CUDA: what is asked of the kernels.
//
//     out = round(residual + scale * activation(x weightᵀ + bias))

#pragma once

#include <cstdint>

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

enum class ProductActivation : int { none, gelu, gelu_tanh };

// What is done with a sum of products, apart from the addends. Rounding is to the nearest number of a format, ties to
// even; what is rounded is a number of the stored type, as if quantize_float read the result.
struct ProductEpilogue {
  ProductActivation activation;
  bool rounds;
  FloatFormat<Float32Bits> format;
};

// Matrices are row by row without gaps, on 16-byte boundaries; columns and depth are multiples of 8, nothing is empty.
struct Product {
  const void* x;         // [rows, depth]
  const void* weight;    // [columns, depth]
  const void* bias;      // [columns] or null
  const void* scale;     // [columns] or null: 1
  const void* residual;  // [rows, columns] or null
  void* out;             // [rows, columns]
  int rows, columns, depth;
  ProductEpilogue epilogue;
};

constexpr int product_alignment = 8;  // elements: 16 bytes

}  // namespace vitfast
