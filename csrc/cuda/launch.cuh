// Kernel launches, independent of torch.

#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include <cuda_runtime.h>

#include "csrc/cuda/stream.h"

namespace vitfast {

// Lets a kernel use all shared memory of the current device, once: a maximum per launch would be a race between two
// host threads that launch the same kernel with different sizes.
inline void allow_all_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) != 0) return;
  int largest = 0;
  cudaFuncAttributes attributes;
  check_cuda(cudaDeviceGetAttribute(&largest, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda(cudaFuncGetAttributes(&attributes, kernel));
  const int dynamic = largest - static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  allowed.emplace(kernel, device);
}

// Launches on the current device. `shared_bytes`: dynamic shared memory per block.
template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...),
    int64_t blocks,
    int threads_per_block,
    int shared_bytes,
    Stream stream,
    const Arguments&... arguments) {
  constexpr int static_limit = 48 * 1024;
  if (shared_bytes > static_limit) allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
  kernel<<<static_cast<unsigned>(blocks), threads_per_block, shared_bytes, stream>>>(arguments...);
  check_cuda(cudaGetLastError());
}

// Number of blocks for a grid-stride loop with one item per thread, limited to what occupies all multiprocessors of the
// current device. `items` must be positive.
inline int64_t blocks_for(int64_t items, int threads_per_block) {
  constexpr int64_t blocks_per_multiprocessor = 16;
  const int64_t needed = (items + threads_per_block - 1) / threads_per_block;
  const int64_t useful = device_attribute(cudaDevAttrMultiProcessorCount) * blocks_per_multiprocessor;
  return needed < useful ? needed : useful;
}

}  // namespace vitfast
