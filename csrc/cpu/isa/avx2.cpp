#define VITFAST_ISA avx2
#define VITFAST_VECTOR_BYTES 32
#include "csrc/cpu/isa/all_kernels.h"
#include "csrc/cpu/isa/packed_kernels.h"
