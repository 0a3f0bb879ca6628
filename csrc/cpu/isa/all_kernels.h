// All kernels, compiled once per instruction set by the files in this folder.

#include "csrc/attention/attention_cpu_kernel.h"
#include "csrc/layer_norm/layer_norm_cpu_kernel.h"
#include "csrc/matmul_accumulate/matmul_accumulate_cpu_kernel.h"
#include "csrc/merge_tokens/merge_tokens_cpu_kernel.h"
#include "csrc/mlp/mlp_cpu_kernel.h"
#include "csrc/quantize/quantize_cpu_kernel.h"
#include "csrc/upsample_relations/upsample_relations_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

const CpuKernels kernels = {
    VITFAST_STRINGIZE(VITFAST_ISA),
    layer_norm_forward,
    layer_norm_backward,
    attention_forward,
    attention_forward,
    attention_backward,
    gelu_forward,
    gelu_backward,
    quantize_float,
    quantize_fixed,
    matmul_accumulate,
    matmul_accumulate_panels,
    upsample_relations,
    merge_tokens,
};

}  // namespace vitfast::VITFAST_ISA
