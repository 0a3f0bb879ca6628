// The products' kernels. Their files are compiled for the architectures that their names say, and the macros tell which
// of them are in this build; csrc/linear/gemm_*.cuh list their instances, few as nvcc takes long for each.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/linear/gemm.h"

namespace vitfast {

// T is Half or BFloat16; sums are float.

// For the GPUs that run sm_80 code: compute capability 8.0 and newer.
template <typename T>
void launch_gemm_sm80(const GemmArguments& product, Stream stream);
template <typename T>
void launch_gemm_sm80(const GemmGradientArguments& product, Stream stream);

// For compute capability 9.0 only.
template <typename T>
void launch_gemm_sm90a(const GemmArguments& product, Stream stream);
template <typename T>
void launch_gemm_sm90a(const GemmGradientArguments& product, Stream stream);

inline bool is_compute_capability_90() {
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
}

[[noreturn]] inline void no_gemm_for_this_gpu() {
  throw std::runtime_error("linear: this build has no product for this GPU's compute capability");
}

// The fastest one in this build that the current device runs, for a GemmArguments or a GemmGradientArguments.
template <typename T, typename Arguments>
void launch_gemm(const Arguments& product, Stream stream) {
#if VITFAST_HAS_SM90A
  if (is_compute_capability_90()) return launch_gemm_sm90a<T>(product, stream);
#endif
#if VITFAST_HAS_SM80
  launch_gemm_sm80<T>(product, stream);
#else
  no_gemm_for_this_gpu();
#endif
}

}  // namespace vitfast
