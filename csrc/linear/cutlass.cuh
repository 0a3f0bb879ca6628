// What both GEMMs add to CUTLASS: element types, epilogue nodes, errors.

#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>
#include <cutlass/cuda_host_adapter.hpp>

#include "csrc/common/types.h"
#include "csrc/cuda/stream.h"
#include "csrc/linear/gemm_epilogue.cuh"

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

// Function of CUTLASS's compute nodes that calls finish_gemm on the sums, and on scale and source where there are such.
template <typename T, GemmEpilogue epilogue>
struct FinishGemm {
  template <typename Values>
  struct Function {
    CUTLASS_DEVICE Values operator()(const Values& sums) const { return (*this)(sums, sums, sums); }
    CUTLASS_DEVICE Values operator()(const Values& sums, const Values& source) const {
      return (*this)(sums, sums, source);
    }
    CUTLASS_DEVICE Values operator()(const Values& sums, const Values& scale, const Values& source) const {
      Values results;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Values::kElements; ++i) {
        results[i] = finish_gemm<T, epilogue>(sums[i], scale[i], source[i]);
      }
      return results;
    }
  };
};

inline void check_cutlass(cutlass::Status status) {
  if (status != cutlass::Status::kSuccess) {
    throw std::runtime_error(std::string("linear: CUTLASS error: ") + cutlass::cutlassGetStatusString(status));
  }
}

}  // namespace vitfast
