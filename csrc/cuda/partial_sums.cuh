// Sums of float partial sums over chunks of rows: the second pass of gradients of parameters. In a fixed order.

#pragma once

#include "csrc/common/chunks.h"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

constexpr int partial_sums_warps = 32;

// A block adds 32 columns: each warp a part of the chunks, the first warp the sums of the warps.
template <typename T>
__global__ void __launch_bounds__(partial_sums_warps* warp_size)
    partial_sums_kernel(const float* partial, T* sums, int64_t chunks, int64_t columns) {
  const int warp = warp_in_block(), lane = lane_in_warp();
  const int64_t column = int64_t(blockIdx.x) * warp_size + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int64_t chunk = warp; chunk < chunks; chunk += partial_sums_warps) sum += partial[chunk * columns + column];
  }
  SharedMemory shared;
  float* of_warps = shared.take<float>(partial_sums_warps * warp_size);
  of_warps[warp * warp_size + lane] = sum;
  sync_threads();
  if (warp != 0 || column >= columns) return;
  float total = 0.0f;
#pragma unroll
  for (int other = 0; other < partial_sums_warps; ++other) total += of_warps[other * warp_size + lane];
  sums[column] = round_to<T>(total);
}

template <typename T>
void launch_partial_sums(const float* partial, void* sums, int64_t chunks, int64_t columns, Stream stream) {
  if (columns == 0) return;
  constexpr int threads = partial_sums_warps * warp_size;
  launch(
      partial_sums_kernel<T>,
      ceil_div(columns, warp_size),
      threads,
      shared_bytes<float>(threads),
      stream,
      partial,
      static_cast<T*>(sums),
      chunks,
      columns);
}

}  // namespace vitfast
