// Entry points of the CUDA kernels: defined in the .cu files, called by the operators (*_cuda.cpp), which are compiled
// without nvcc. They launch on the current device. T: Half, BFloat16 or float, unless stated otherwise.

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/common/fixed_format.h"
#include "csrc/cuda/stream.h"
#include "csrc/layer_norm/layer_norm.h"
#include "csrc/linear/gemm.h"
#include "csrc/matmul_accumulate/matmul_accumulate.h"
#include "csrc/quantize/round_elements.h"
#include "csrc/upsample_relations/upsample_relations.h"

namespace vitfast {

// Attention. T: Half or BFloat16; up to attention_cuda_max_tokens tokens and attention_cuda_max_head_dim columns.
template <typename T>
void launch_attention_forward(const AttentionForward& a, Stream stream);

// For calls without bias and logits, and with a positive scale. The build defines VITFAST_HAS_SM90A (GPUs of compute
// capability 9.0 only) if it contains the kernel.
template <typename T>
void launch_attention_forward_sm90a(const AttentionForward& a, Stream stream);

// More than attention_backward_small_tokens tokens take attention_backward_largest_bytes of shared memory.
template <typename T>
void launch_attention_backward(const AttentionBackward& a, Stream stream);

template <typename T>
void launch_gated_positional_attention(const GatedPositionalAttention& a, Stream stream);

// T, U: the types of the residual stream and of the branch, and float with a narrower one.
template <typename T, typename U>
void launch_layer_norm_forward(const LayerNormForward& a, Stream stream);
template <typename T, typename U>
void launch_layer_norm_backward(const LayerNormBackward& a, Stream stream);

// R: FloatRounding or FixedPointRounding.
template <typename R>
void launch_round_elements(const DeviceElements& a, const R& rounding, Stream stream);

void launch_matmul_accumulate(const MatmulAccumulate& a, Stream stream);
void launch_matmul_fp16_accumulation(const MatmulFp16Accumulation& a, Stream stream);

// The result must not be empty, and the matrix must have a column.
template <typename T>
void launch_upsample_relations(const UpsampleRelationsOnDevice& a, Stream stream);

// T: Half or BFloat16. The build defines VITFAST_HAS_SM80 (GPUs of compute capability 8.0 and newer) and
// VITFAST_HAS_SM90A (9.0 only) if it contains the kernels.
template <typename T>
void launch_gemm_sm80(const GemmArguments& arguments, Stream stream);
template <typename T>
void launch_gemm_sm90a(const GemmArguments& arguments, Stream stream);
template <typename T>
void launch_epilogue_gradient(const EpilogueGradient& a, Stream stream);

// sums [columns], of T, of `partial` [chunks, columns].
template <typename T>
void launch_partial_sums(const float* partial, void* sums, int64_t chunks, int64_t columns, Stream stream);

}  // namespace vitfast
