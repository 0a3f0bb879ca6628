// CUTLASS element types, errors and launches.

#pragma once

#include <stdexcept>
#include <string>

#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>

#include "csrc/common/types.h"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

template <typename T>
struct CutlassElementOf;
template <>
struct CutlassElementOf<Half> {
  using type = cutlass::half_t;
};
template <>
struct CutlassElementOf<BFloat16> {
  using type = cutlass::bfloat16_t;
};
template <typename T>
using CutlassElement = typename CutlassElementOf<T>::type;

inline void check_cutlass(cutlass::Status status) {
  if (status != cutlass::Status::kSuccess) {
    throw std::runtime_error(std::string("linear: CUTLASS error: ") + cutlass::cutlassGetStatusString(status));
  }
}

// Launches a GEMM that needs no workspace.
template <typename Gemm, typename Arguments>
void run_cutlass(const Arguments& arguments, Stream stream) {
  if (Gemm::get_workspace_size(arguments) != 0)
    throw std::runtime_error("linear: the CUTLASS kernel requires a workspace");
  Gemm gemm;
  check_cutlass(gemm.initialize(arguments, nullptr, stream));
  check_cutlass(gemm.run(stream));
}

}  // namespace vitfast
