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

// Elementwise rounding by a FloatRounding or a FixedPointRounding.
template <typename R>
struct Quantize {
  Type type;
  const void* x;
  void* y;  // may be x's memory
  R rounding;
  uint64_t seed;  // stochastic rounding
  bool streams;   // whether y is too large for the caches
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

// Tokens are merged with the most similar other ones; vitfast/inference/modules/token_merging.py has the algorithm.
struct MergeTokens {
  const float* x;    // [images, tokens, channels], contiguous
  Type key_type;     // float32 or bfloat16
  const void* keys;  // [images, tokens, heads, head_dim], contiguous heads
  int64_t key_image_stride;
  int64_t key_row_stride;
  const float* sizes;  // [images, tokens] or null: ones
  int64_t tokens;
  int64_t channels;
  int64_t heads;
  int64_t head_dim;
  int64_t count;     // tokens less per image
  int64_t prefix;    // tokens that are not merged
  float* out;        // [images, tokens - count, channels]
  float* out_sizes;  // [images, tokens - count]
  int64_t* places;   // [images, tokens]
};

// Runs the part [begin, end) of an operator's work; the table says what is counted.
template <typename Arguments>
using Kernel = void (*)(const Arguments&, int64_t begin, int64_t end);

struct CpuKernels {
  const char* name;
  Kernel<LayerNormForward> layer_norm_forward;                  // rows
  Kernel<LayerNormBackward> layer_norm_backward;                // chunks of rows
  Kernel<AttentionForward> attention_forward;                   // B * H * row_splits tasks
  Kernel<GatedPositionalAttention> gated_positional_attention;  // the same
  Kernel<AttentionBackward> attention_backward;  // heads of images; heads if grad_bias is summed over the batch
  Kernel<Gelu> gelu_forward;                     // elements, as the next three
  Kernel<Gelu> gelu_backward;
  Kernel<Quantize<FloatRounding>> quantize_float;
  Kernel<Quantize<FixedPointRounding>> quantize_fixed;
  Kernel<MatmulAccumulate> matmul_accumulate;            // panels * blocks of rows
  int64_t (*matmul_accumulate_panels)(int64_t columns);  // their number
  Kernel<UpsampleRelations> upsample_relations;          // heads of images
  Kernel<MergeTokens> merge_tokens;                      // images
};

struct PackedKernels;  // csrc/packed/packed.h

// The tables of each file of csrc/cpu/isa/.
namespace baseline {
extern const CpuKernels kernels;
extern const PackedKernels packed_kernels;
}  // namespace baseline
namespace avx2 {
extern const CpuKernels kernels;
extern const PackedKernels packed_kernels;
}  // namespace avx2
namespace avx512 {
extern const CpuKernels kernels;
extern const PackedKernels packed_kernels;
}  // namespace avx512
namespace avx512_vnni {
extern const PackedKernels packed_kernels;
}
namespace avx512_bf16 {
extern const PackedKernels packed_kernels;
}
namespace avx512_amx {
extern const PackedKernels packed_kernels;
}

// The kernels of the widest supported instruction set, or of the one selected by VITFAST_ISA.
const CpuKernels& cpu_kernels();

}  // namespace vitfast
