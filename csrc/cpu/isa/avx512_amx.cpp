// Only what the wider instruction set changes; all else is avx512_bf16's.

#define VITFAST_ISA avx512_amx
#define VITFAST_EXTENDS avx512_bf16
#define VITFAST_VECTOR_BYTES 64
#include "csrc/cpu/isa/packed_kernels.h"
