// CUDA kernels of linear on tensors, also used by the MLP.

#pragma once

#include "csrc/linear/linear_tensors.h"

namespace vitfast {

// The result of a call, or nullopt if no GEMM kernel supports its types and shapes.
std::optional<LinearResult> gemm_on_cuda(const LinearCall& call, bool saves_sum);

// Gradients of the epilogue, or nullopt if the kernel does not support the types and shapes.
std::optional<EpilogueGradients> epilogue_gradients_on_cuda(const EpilogueGradientCall& call);

// (grad weight) * activation'(pre_activation) and its column sums.
EpilogueGradients gemm_gradient_on_cuda(
    const Tensor& grad,            // [rows, depth]
    const Tensor& weight,          // [depth, N]
    const Tensor& pre_activation,  // [rows, N]
    EpilogueActivation activation);

}  // namespace vitfast
