// What every CUDA kernel of attention takes.

#pragma once

#include <stdexcept>

#include "csrc/attention/attention_gemm.cuh"

namespace vitfast {

constexpr int attention_max_tokens = 32768;  // within the square of a head the kernels count in 32 bits

// Rows start at multiples of 16 bytes besides.
inline void check_attention_limits(const Attention& a) {
  if (a.tokens > attention_max_tokens || a.head_dim > 128 || a.head_dim % 8 != 0) {
    throw std::runtime_error("attention: the CUDA kernel takes up to 32768 tokens and head dimensions up to 128, by 8");
  }
  if (a.batch * a.heads * attention_tiles(a.tokens) > INT32_MAX) {
    throw std::runtime_error("attention: the CUDA kernel takes up to 2^31 - 1 tiles of 16 queries, of all heads");
  }
}

}  // namespace vitfast
