// The products' kernels. Their files are compiled for the architectures that their names say, and the macros tell which
// of them are in this build; csrc/products/product_*.cuh list their instances, few as nvcc takes long for each.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/products/product.h"

namespace vitfast {

// T is Half or BFloat16; sums are float.

// For the GPUs that run sm_80 code: compute capability 8.0 and newer.
template <typename T>
void launch_product_sm80(const Product& product, Stream stream);
template <typename T>
void launch_product_sm80(const ProductGradient& product, Stream stream);

// For compute capability 9.0 only.
template <typename T>
void launch_product_sm90a(const Product& product, Stream stream);
template <typename T>
void launch_product_sm90a(const ProductGradient& product, Stream stream);

inline bool is_compute_capability_90() {
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
}

[[noreturn]] inline void no_product_for_this_gpu() {
  throw std::runtime_error("linear: this build has no product for this GPU's compute capability");
}

// The fastest one in this build that the current device runs, for a Product or a ProductGradient.
template <typename T, typename AnyProduct>
void launch_product(const AnyProduct& product, Stream stream) {
#if VITFAST_HAS_SM90A
  if (is_compute_capability_90()) return launch_product_sm90a<T>(product, stream);
#endif
#if VITFAST_HAS_SM80
  launch_product_sm80<T>(product, stream);
#else
  no_product_for_this_gpu();
#endif
}

}  // namespace vitfast
