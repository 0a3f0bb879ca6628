#define VITFAST_ISA baseline
#define VITFAST_VECTOR_BYTES 16
#include "csrc/cpu/isa/all_kernels.h"
#include "csrc/cpu/isa/packed_kernels.h"
