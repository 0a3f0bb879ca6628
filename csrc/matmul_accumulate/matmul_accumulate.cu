// The launch functions are not templates: their definitions are here.

#include "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"
#include "csrc/matmul_accumulate/matmul_fp16_accumulation_kernel.cuh"
