// Gradients of a GEMM epilogue in one pass over grad_out, where no GEMM with a gradient epilogue can compute them.
//
//     out = scale * activation(sum), sum = x weightᵀ + bias
//
//     grad_sum   = grad_out * scale * activation'(sum)
//     grad_bias  = column sums of grad_sum
//     grad_scale = column sums of grad_out * activation(sum)
//
// A thread processes eight adjacent columns (16 bytes) of every eighth row of its block's chunk: a warp reads 512
// contiguous bytes of a row. Column sums are kept in registers, added over the block's warps in shared memory in a
// fixed order, and written to the block's own row of partial sums.

#pragma once

#include <cstdint>

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/gelu.cuh"
#include "csrc/linear/gemm.h"

namespace vitfast {

constexpr int epilogue_gradient_warps = 8;
constexpr int epilogue_gradient_threads = epilogue_gradient_warps * warp_size;
constexpr int epilogue_gradient_width = epilogue_gradient_columns / warp_size;  // columns of a thread
constexpr int epilogue_gradient_shared_bytes = shared_bytes<float>(epilogue_gradient_warps * epilogue_gradient_columns);

// Adds the column sums of the block's warps and writes them.
__device__ __forceinline__ void write_column_sums(
    float* partial, const float (&sums)[epilogue_gradient_width], float* scratch, int64_t columns_left) {
  store_floats(scratch + warp_in_block() * epilogue_gradient_columns + lane_in_warp() * epilogue_gradient_width, sums);
  sync_threads();
  const int column = int(threadIdx.x);
  if (column < columns_left) {
    partial[column] = sum_groups<epilogue_gradient_warps, epilogue_gradient_columns>(scratch, column);
  }
  sync_threads();  // the scratch can be reused
}

template <typename T>
__global__ void __launch_bounds__(epilogue_gradient_threads)
    epilogue_gradient_kernel(const EpilogueGradient a, const int64_t column_blocks) {
  constexpr int width = epilogue_gradient_width;
  static_assert(epilogue_gradient_columns == epilogue_gradient_threads && width == Pack<T>::size);
  const int64_t chunk = blockIdx.x / column_blocks;
  const int64_t first_column = (blockIdx.x - chunk * column_blocks) * epilogue_gradient_columns;
  const int64_t column = first_column + lane_in_warp() * width;
  const int64_t begin = chunk * a.rows_per_chunk, end = begin + a.rows_per_chunk;
  const int64_t last = end < a.rows ? end : a.rows;

  float bias_sums[width] = {}, scale_sums[width] = {};
  if (column < a.columns) {
    float scale[width];
#pragma unroll
    for (int i = 0; i < width; ++i) scale[i] = 1.0f;
    if (a.scale != nullptr) load_floats(scale, static_cast<const T*>(a.scale) + column);
    for (int64_t row = begin + warp_in_block(); row < last; row += epilogue_gradient_warps) {
      const int64_t at = row * a.columns + column;
      float gradient[width];
      load_floats(gradient, static_cast<const T*>(a.grad_out) + at);
      if (a.sum != nullptr) {
        float sum[width];
        load_floats(sum, static_cast<const T*>(a.sum) + at);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          float value = sum[i], slope = 1.0f;
          if (a.activation == EpilogueActivation::gelu) {
            slope = gelu_erf_derivative<T>(sum[i]);
            if (a.scale != nullptr) value = gelu_erf<T>(sum[i]);
          } else if (a.activation == EpilogueActivation::gelu_tanh) {
            slope = gelu_tanh_derivative(sum[i]);
            if (a.scale != nullptr) value = gelu_tanh(sum[i]);
          }
          scale_sums[i] += gradient[i] * value;
          gradient[i] *= scale[i] * slope;
        }
      }
#pragma unroll
      for (int i = 0; i < width; ++i) bias_sums[i] += gradient[i];
      if (a.grad_sum != nullptr) store_rounded(static_cast<T*>(a.grad_sum) + at, gradient);
    }
  }

  SharedMemory shared;
  float* scratch = shared.take<float>(epilogue_gradient_warps * epilogue_gradient_columns);
  const int64_t target = chunk * a.columns + first_column, columns_left = a.columns - first_column;
  if (a.partial_bias != nullptr) write_column_sums(a.partial_bias + target, bias_sums, scratch, columns_left);
  if (a.partial_scale != nullptr) write_column_sums(a.partial_scale + target, scale_sums, scratch, columns_left);
}

// T: Half or BFloat16.
template <typename T>
void launch_epilogue_gradient(const EpilogueGradient& a, Stream stream) {
  if (a.rows == 0 || a.columns == 0) return;
  const int64_t column_blocks = ceil_div(a.columns, epilogue_gradient_columns);
  const int64_t blocks = column_blocks * ceil_div(a.rows, a.rows_per_chunk);
  const auto kernel = epilogue_gradient_kernel<T>;
  launch(kernel, blocks, epilogue_gradient_threads, epilogue_gradient_shared_bytes, stream, a, column_blocks);
}

}  // namespace vitfast
