// Streams, errors and device attributes of the CUDA runtime, for host code; independent of torch.

#pragma once

#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

namespace vitfast {

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace vitfast
