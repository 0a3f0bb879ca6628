// What the tensor functions (<op>_cpu.cpp) ask of the kernels, and the table of one instruction set's kernels.
//
// Pointers are to the first element; strides are in elements; `type` is that of all void pointers unless said
// otherwise. Statistics and scratch are in the type that is computed in: double for float64, else float.

#pragma once

#include <cstdint>

#include "csrc/attention/attention.h"
#include "csrc/common/fixed_format.h"
#include "csrc/common/float_format.h"
#include "csrc/common/types.h"
#include "csrc/layer_norm/layer_norm.h"
#include "csrc/matmul_accumulate/matmul_accumulate.h"

namespace vitfast {

struct Gelu {
  Type type;
  bool tanh;
  const void* pre_activation;
  const void* grad_activation;  // backward only
  void* activation;             // may be pre_activation's memory
  void* grad_pre_activation;    // backward only; may be grad_activation's memory
};

struct AddInPlace {
  Type type;
  const void* x;
  void* sum;  // += x
};

// Elements that are rounded one by one.
struct Elements {
  Type type;
  const void* x;
  void* y;        // may be x's memory
  uint64_t seed;  // stochastic rounding
  bool streams;   // whether y is too large for the caches
};

struct QuantizeFloat {
  Elements elements;
  FloatRounding rounding;
};

struct QuantizeFixed {
  Elements elements;
  FixedPointRounding rounding;
};

// Rows of a task: a multiple of every tile, enough to pay for packing the panel that another thread packs, too.
constexpr int64_t matmul_accumulate_block_rows = 192;

// Of a matrix [fine, coarse] the nonzero elements: those of row r are starts[r] to starts[r + 1].
struct UpsampleRelations {
  Type type;
  const void* x;  // [images, heads, coarse, coarse], columns are neighbours
  int64_t image_stride;
  int64_t head_stride;
  int64_t row_stride;
  void* out;  // [images, heads, fine, fine], contiguous
  int64_t heads;
  int64_t coarse;
  int64_t fine;
  const int64_t* starts;
  const int64_t* columns;
  const void* weights;  // in the type that is computed in
};

// [begin, end) counts rows, chunks of rows, tasks or elements, as said.
struct CpuKernels {
  const char* name;
  void (*layer_norm_forward)(const LayerNormForward&, int64_t begin, int64_t end);    // rows
  void (*layer_norm_backward)(const LayerNormBackward&, int64_t begin, int64_t end);  // chunks
  void (*attention_forward)(const AttentionForward&, int64_t begin, int64_t end);     // B * H * row_splits tasks
  void (*gated_positional_attention)(const GatedPositionalAttention&, int64_t begin, int64_t end);  // the same
  void (*attention_backward)(
      const AttentionBackward&,
      int64_t begin,
      int64_t end);  // heads of images; heads if grad_bias is summed over the batch
  void (*gelu_forward)(const Gelu&, int64_t begin, int64_t end);                     // elements
  void (*gelu_backward)(const Gelu&, int64_t begin, int64_t end);                    // elements
  void (*add_in_place)(const AddInPlace&, int64_t begin, int64_t end);               // elements
  void (*quantize_float)(const QuantizeFloat&, int64_t begin, int64_t end);          // elements
  void (*quantize_fixed)(const QuantizeFixed&, int64_t begin, int64_t end);          // elements
  void (*matmul_accumulate)(const MatmulAccumulate&, int64_t begin, int64_t end);    // panels * blocks of rows
  int64_t (*matmul_accumulate_panels)(int64_t columns);                              // how many there are
  void (*upsample_relations)(const UpsampleRelations&, int64_t begin, int64_t end);  // heads of images
};

// One table per file of csrc/cpu/isa/.
namespace baseline {
extern const CpuKernels kernels;
}
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}

// The kernels of the widest instruction set that this processor has, or of the one that VITFAST_ISA names.
const CpuKernels& cpu_kernels();

}  // namespace vitfast
