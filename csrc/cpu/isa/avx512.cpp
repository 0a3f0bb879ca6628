#define VITFAST_ISA avx512
#define VITFAST_VECTOR_BYTES 64
#include "csrc/cpu/isa/all_kernels.h"
#include "csrc/cpu/isa/packed_kernels.h"
