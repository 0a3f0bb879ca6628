// CUTLASS element types, epilogue nodes and errors.

#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>
#include <cutlass/cuda_host_adapter.hpp>

#include "csrc/common/types.h"
#include "csrc/cuda/stream.h"

namespace vitfast {

template <typename T>
using CutlassElement = std::conditional_t<std::is_same_v<T, Half>, cutlass::half_t, cutlass::bfloat16_t>;

// Base of custom nodes of CUTLASS's epilogue trees: host arguments are the kernel parameters, no workspace.
template <typename Base, typename Arguments_>
struct EpilogueNode : Base {
  using Arguments = Arguments_;
  using Params = Arguments_;

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static bool can_implement(const ProblemShape&, const Arguments&) {
    return true;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }
  template <class ProblemShape>
  static cutlass::Status initialize_workspace(
      const ProblemShape&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
};

inline void check_cutlass(cutlass::Status status) {
  if (status != cutlass::Status::kSuccess) {
    throw std::runtime_error(std::string("linear: CUTLASS error: ") + cutlass::cutlassGetStatusString(status));
  }
}

}  // namespace vitfast
