// What the tensor functions ask of the MLP's kernel on the device.

#pragma once

#include <cstdint>

namespace vitfast {

// out = residual + fc2(gelu(fc1(x))), all of one 16-bit type; rows start at multiples of 16 bytes.
struct MlpForward {
  const void* x;           // [rows, C]
  const void* fc1_weight;  // [F, C]
  const void* fc1_bias;    // [F] or null
  const void* fc2_weight;  // [C, F]
  const void* fc2_bias;    // [C] or null
  const void* residual;    // [rows, C] or null
  void* out;               // [rows, C]; not the memory of x or of the residual
  int64_t rows;
  int64_t channels;  // C, a multiple of 8
  int64_t hidden;    // F, a multiple of 8
};

}  // namespace vitfast
