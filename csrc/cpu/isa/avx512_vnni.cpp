// Only what the wider instruction set changes; all else is avx512's.

#define VITFAST_ISA avx512_vnni
#define VITFAST_EXTENDS avx512
#define VITFAST_VECTOR_BYTES 64
#include "csrc/cpu/isa/packed_kernels.h"
