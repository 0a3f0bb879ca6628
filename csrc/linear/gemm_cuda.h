// The CUDA kernels of csrc/linear on tensors, as linear and the MLP call them. Each returns nothing where it does not
// take the types or shapes: torch's operators compute those.

#pragma once

#include "csrc/linear/linear_tensors.h"

namespace vitfast {

// The tensor as TMA and 16-byte loads can read it, or a copy.
Tensor readable(const Tensor& tensor);
std::optional<Tensor> readable(const std::optional<Tensor>& tensor);

// The whole result of a call.
std::optional<Tensor> gemm_on_cuda(const LinearCall& call);

// The gradients of what follows its sum.
std::optional<EpilogueGradients> epilogue_gradients_on_cuda(const EpilogueGradientCall& call);

// Whether gemm_gradient_on_cuda takes a product of these sizes.
bool has_gemm_on_cuda(ScalarType type, int64_t rows, int64_t columns, int64_t depth);

// (grad weight) * activation'(pre_activation), and the sums of its columns.
EpilogueGradients gemm_gradient_on_cuda(
    const Tensor& grad,            // [rows, depth]
    const Tensor& weight,          // [depth, N]
    const Tensor& pre_activation,  // [rows, N]
    EpilogueActivation activation);

}  // namespace vitfast
