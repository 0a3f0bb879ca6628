// What every CUDA operator does on the host around its kernel: device, stream, size of the grid, check of the launch.

#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace vitfast {

// Makes the tensor's device the current one for as long as it lives, and launches on torch's current stream there.
class CudaLaunch {
 public:
  explicit CudaLaunch(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // Blocks for a grid-stride loop over `items`, one for each thread: as many as needed, and no more than keep every
  // multiprocessor busy. `items` must be positive.
  unsigned blocks(int64_t items, int threads_per_block) const {
    constexpr int64_t blocks_per_multiprocessor = 16;
    int multiprocessors = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device_));
    const int64_t needed = (items + threads_per_block - 1) / threads_per_block;
    const int64_t useful = multiprocessors * blocks_per_multiprocessor;
    return static_cast<unsigned>(needed < useful ? needed : useful);
  }

  // Throws if the launch before this call was refused.
  static void check() { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace vitfast
