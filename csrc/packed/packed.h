// GEMMs with packed weights, inference only: the memory layout of weights, and the kernels' arguments.
// docs/internals/cpu_engine.md has figures.
//
// Pointers are to the first element; strides are in elements.

#pragma once

#include <cstdint>

#include "csrc/common/chunks.h"
#include "csrc/common/types.h"

namespace vitfast {

// Type of a GEMM's operands; sums are float32, or int32 within a group of int8.
enum class Precision : int64_t { float32, bfloat16, float16, int8 };

enum class Activation : int64_t { none, gelu, gelu_tanh, gelu_quick, tanh, silu, relu };

// --- memory layout of a weight [N, K], the same on every machine ---
//
// Panels of 64 output columns follow each other. A panel is a list of rows of 64 words; a word holds one column's
// `k_per_word` consecutive weights along K. The inputs are divided into groups: a group of a panel fits the cache, and
// int8 activations have one scale per row and group. Each group of an int8 panel starts with a row of 64 int32, the
// zero-point compensation of the unsigned activations (q + 128): -128 * (sum of the group's weights). N and K are
// padded with zeros. int8 scales, one float32 per padded column, follow the panels.

constexpr int64_t panel_columns = 64;
constexpr int64_t max_group = 1024;

constexpr int64_t k_per_word(Precision precision) {
  return precision == Precision::int8 ? 4 : precision == Precision::bfloat16 ? 2 : 1;
}

constexpr int64_t word_bytes(Precision precision) {
  return precision == Precision::float16 ? 2 : 4;
}

constexpr int64_t group_count(int64_t k) {
  return k > max_group ? ceil_div(k, max_group) : 1;
}

// Size of all groups but the last; a multiple of 64 if there are several.
constexpr int64_t group_size(int64_t k) {
  return group_count(k) == 1 ? k : ceil_div(ceil_div(k, group_count(k)), 64) * 64;
}

constexpr int64_t group_bytes(Precision precision, int64_t size) {
  const int64_t rows = ceil_div(size, k_per_word(precision)) + (precision == Precision::int8 ? 1 : 0);
  return rows * panel_columns * word_bytes(precision);
}

constexpr int64_t panel_count(int64_t n) {
  return ceil_div(n, panel_columns);
}

constexpr int64_t panel_bytes(Precision precision, int64_t k) {
  const int64_t whole_groups = (group_count(k) - 1) * group_bytes(precision, group_size(k));
  return whole_groups + group_bytes(precision, k - (group_count(k) - 1) * group_size(k));
}

constexpr int64_t packed_header = 64;  // bytes of PackedHeader, so that panels are aligned

constexpr int64_t packed_bytes(Precision precision, int64_t n, int64_t k) {
  const int64_t scale_bytes = precision == Precision::int8 ? panel_columns * int64_t(sizeof(float)) : 0;
  return packed_header + panel_count(n) * (panel_bytes(precision, k) + scale_bytes);
}

// At the start of a packed weight.
struct PackedHeader {
  Precision precision;
  int64_t n, k;
  bool operator==(const PackedHeader& other) const {
    return precision == other.precision && n == other.n && k == other.k;
  }
};

struct PackedWeight {
  Precision precision;
  const char* panels;
  int64_t n, k;
  const float* bias;  // [n] or null

  const char* group(int64_t panel, int64_t index) const {
    return panels + panel * panel_bytes(precision, k) + index * group_bytes(precision, group_size(k));
  }
  const float* scales() const {
    return reinterpret_cast<const float*>(panels + panel_count(n) * panel_bytes(precision, k));
  }
};

// --- arguments of the kernels ---

// LayerNorm over the last dimension, fused into the GEMM after it.
struct Norm {
  bool is_used;
  const float* weight;  // or null
  const float* bias;    // or null
  double eps;
};

// An input matrix: float32 or bfloat16.
struct Rows {
  Type type;
  const void* data;
  int64_t stride;
};

// out = residual + scale * factor * activation(norm(x) wᵀ + bias)
struct PackedLinear {
  PackedWeight weight;
  Rows x;
  Type out_type;  // float32 or bfloat16
  void* out;      // [rows, n]
  Norm norm = {};
  Activation activation = Activation::none;
  const float* scale = nullptr;     // [n] or null
  const float* residual = nullptr;  // [rows, n] or null
  const float* factor = nullptr;    // [rows, n] or null; not with a scale or a residual
};

// out = residual + scale * fc2(hidden), where hidden is activation(fc1(norm(x))) or, with a gate,
// activation(gate(norm(x))) * fc1(norm(x))
struct PackedMlp {
  PackedWeight fc1, fc2;
  Rows x;
  Norm norm;
  Activation activation;
  const float* scale;     // [n] or null
  const float* residual;  // [rows, n]; may be out
  float* out;             // [rows, n]
  PackedWeight gate = {};
  bool is_gated() const { return gate.panels != nullptr; }
};

// Rotary position embedding of q and k of the last tokens: x * cosine + y * sine, where y is the other element of x's
// pair and the sine has the sign of the term.
struct Rotary {
  const float* tables = nullptr;  // [H or 1, tokens, 2, D]: cosines and sines; null: no rotation
  int64_t tokens = 0;
  bool is_shared = false;       // by all heads
  bool is_interleaved = false;  // pairs are elements 2i and 2i + 1, else i and i + D / 2
};

// Groups of an image's tokens that attend among themselves; without `tokens` one window of all tokens.
struct Windows {
  const int64_t* tokens = nullptr;    // [count, PackedAttention::tokens]: index in the image; -1: padding
  const int64_t* patterns = nullptr;  // [count]: of the bias
  const int64_t* lengths = nullptr;   // [count]: tokens that attend, the first ones; null: all
  int64_t count = 1;
  int64_t image_tokens = 0;
  const float* padding = nullptr;  // q, k and v of padding [3, H, D]; null: zeros
};

// Biases of the keys' rows and columns on a grid that depend on the query (SAM): with a query q at (y, x), the logit of
// the key at (i, j) is increased by the sum over c of q[c] (rows[c, i - y + height - 1] + columns[c, j - x + width -
// 1]).
struct QueryBias {
  const float* rows = nullptr;     // [D, 2 height - 1]; null: none
  const float* columns = nullptr;  // [D, 2 width - 1]
  int64_t height = 0, width = 0;   // of a window
};

// softmax(scale q kᵀ + bias) v of each head and window, for rows of the flattened windows of all images;
// qkv [B, N, 3, H, D], out [B, N, H, D].
struct PackedAttention {
  Type qkv_type;  // float32 or bfloat16; also the operands' type if the processor multiplies bfloat16
  const void* qkv;
  Type out_type;  // float32 or bfloat16
  void* out;
  int64_t tokens, heads, head_dim;  // tokens of a window
  double scale;
  bool is_int8;  // the precision: steps of a head's largest number are fine enough
  Rotary rotary = {};
  Windows windows = {};
  const float* cosine = nullptr;  // [H] or null: q and k are divided by their norms, and q is multiplied by this factor
  const float* bias = nullptr;    // [patterns, H, tokens, tokens] or null, with these strides
  int64_t bias_stride = 0, bias_head_stride = 0, bias_pattern_stride = 0;
  QueryBias query_bias = {};
  const float* query_terms = nullptr;  // that bias of each query and row, and column: [tokens, height + width]
  float* logits = nullptr;             // float32 qkv only: [B, H, N, N] or null: scale q kᵀ + bias

  bool is_gathered() const { return windows.tokens != nullptr || cosine != nullptr || query_bias.rows != nullptr; }
  bool has_bias() const { return bias != nullptr || query_terms != nullptr; }
  int64_t image_tokens() const { return windows.tokens == nullptr ? tokens : windows.image_tokens; }
};

enum class Pixels : int64_t { uint8, float32, bfloat16 };

struct Extent {
  int64_t height, width;
};

// GEMM over the patches of images (im2col on the fly) with an optional LayerNorm, written after the prefix's rows.
struct PackedPatchEmbed {
  PackedLinear gemm;  // x is unused; residual [patches, n] of every image, out [batch, prefix_rows + patches, n]
  Pixels pixels;
  const void* images;  // [batch, channels, size.height, size.width]
  int64_t batch, channels;
  Extent size, patch, stride, padding;
  int64_t prefix_rows;
  const float* prefix;  // [prefix_rows, n]

  Extent grid() const {
    return {
        (size.height + 2 * padding.height - patch.height) / stride.height + 1,
        (size.width + 2 * padding.width - patch.width) / stride.width + 1};
  }
  int64_t patches() const { return grid().height * grid().width; }
};

// Performer attention. Sums over tokens are computed per section, each relative to its own maxima of the features; rows
// are padded to two vectors of every instruction set.
constexpr int64_t performer_section = 128;
constexpr int64_t performer_padding = 32;

struct PerformerSums {
  float* maxima;    // [padded_features]
  float* totals;    // [padded_features]
  float* products;  // [features, padded_dim]
};

struct PackedPerformer {
  const float* kqv;         // [B, tokens, 3, dim]
  const float* projection;  // [features, dim]
  int64_t tokens, dim, features;
  double log_epsilon;  // of features * epsilon
  float* sums;         // [B, sections, sums_size]
  float* out;          // [B, tokens, dim]

  int64_t sections() const { return ceil_div(tokens, performer_section); }
  int64_t padded_features() const { return ceil_div(features, performer_padding) * performer_padding; }
  int64_t padded_dim() const { return ceil_div(dim, performer_padding) * performer_padding; }
  int64_t sums_size() const { return 2 * padded_features() + features * padded_dim(); }
  PerformerSums sums_at(float* place) const {
    return {place, place + padded_features(), place + 2 * padded_features()};
  }
};

// [begin, end)
struct Range {
  int64_t begin, end;
};

// Rows multiplied with all panels in turn: a multiple of `step`. They leave space for the panels in L2.
struct ChunkLimits {
  int64_t step, smallest, largest;
  int64_t bytes;  // of their operands
};

// One table per instruction set. `workspace`: memory of each concurrent call, aligned to 64
// bytes, of the size that <function>_workspace returns for the largest number of rows.
struct PackedKernels {
  const char* name;
  bool has_bfloat16_dot;
  ChunkLimits chunk_limits;
  int64_t rows_at_a_time;  // for a thread that computes a block for whole images
  int64_t (*linear_workspace)(const PackedLinear&, int64_t rows);
  void (*linear)(const PackedLinear&, Range rows, Range panels, char* workspace);
  int64_t (*mlp_workspace)(const PackedMlp&, int64_t rows);
  void (*mlp)(const PackedMlp&, Range rows, char* workspace);
  int64_t (*attention_workspace)(const PackedAttention&);
  void (*attention)(const PackedAttention&, Range rows, Range heads, char* workspace);
  // patches of all images; the workspace is that of the GEMM
  void (*patch_embed)(const PackedPatchEmbed&, Range patches, char* workspace);
  int64_t (*performer_workspace)(const PackedPerformer&);
  void (*performer_keys)(const PackedPerformer&, Range sections, char* workspace);  // of all images
  void (*performer_queries)(const PackedPerformer&, Range rows, char* workspace);
  int64_t (*fma_peak)(Precision, int64_t iterations);  // operations done
};

// The kernels of the widest supported instruction set, or of the one selected by VITFAST_ISA.
const PackedKernels& packed_kernels();

}  // namespace vitfast
