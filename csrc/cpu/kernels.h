// Arguments of the CPU kernels, and the function table of one instruction set.
//
// Pointers are to the first element; strides are in elements; `type` is the type of all void pointers unless noted.
// Statistics and scratch are in the accumulation type: double for float64, else float.

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

// Elementwise rounding.
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

// Rows of a task: a multiple of every tile, enough to amortize packing a panel in several threads.
constexpr int64_t matmul_accumulate_block_rows = 192;

// A sparse matrix [fine, coarse]: the nonzero elements of row r are starts[r] to starts[r + 1].
struct UpsampleRelations {
  Type type;
  const void* x;  // [images, heads, coarse, coarse], contiguous columns
  int64_t image_stride;
  int64_t head_stride;
  int64_t row_stride;
  void* out;  // [images, heads, fine, fine], contiguous
  int64_t heads;
  int64_t coarse;
  int64_t fine;
  const int64_t* starts;
  const int64_t* columns;
  const void* weights;  // in the accumulation type
};

// [begin, end) counts rows, chunks of rows, tasks or elements, as noted.
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
  int64_t (*matmul_accumulate_panels)(int64_t columns);                              // their number
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

// The kernels of the widest supported instruction set, or of the one selected by VITFAST_ISA.
const CpuKernels& cpu_kernels();

}  // namespace vitfast
