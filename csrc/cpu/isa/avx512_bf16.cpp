// Only what the wider instruction set changes; all else is avx512_vnni's.

#define VITFAST_ISA avx512_bf16
#define VITFAST_EXTENDS avx512_vnni
#define VITFAST_VECTOR_BYTES 64
#include "csrc/cpu/isa/packed_kernels.h"
