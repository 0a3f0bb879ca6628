// Blocks with packed weights: their parameters and layers, and the parts of a block that a thread runs.

#pragma once

#include <algorithm>
#include <vector>

#include "csrc/cpu/kernels.h"
#include "csrc/layer_norm/layer_norm.h"
#include "csrc/packed/attention_arguments.h"
#include "csrc/packed/packed_parallel.h"

namespace vitfast {

// Type of attention's operands: bfloat16 where the precision and the instruction set allow, else float32.
inline Type attention_type(Precision precision) {
  const bool is_narrow = precision == Precision::bfloat16 || precision == Precision::int8;
  return is_narrow && packed_kernels().has_bfloat16_dot ? Type::bfloat16 : Type::float32;
}

inline ScalarType scalar_type(Type type) {
  return type == Type::bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
}

inline int64_t bytes_of(Type type) {
  return type == Type::bfloat16 ? 2 : 4;
}

// Splits the queries evenly among the threads, head by head; two threads may share a head. `prepare(attention, image,
// head, memory)` is called before each head with `bytes` bytes of thread-local memory.
template <typename Prepare>
inline void run_attention(const PackedAttention& a, int64_t images, int64_t bytes, const Prepare& prepare) {
  const int64_t queries = images * a.windows.count * a.heads * a.tokens;
  if (queries == 0) return;
  const int64_t threads = worthwhile_threads(2 * queries * a.tokens * a.head_dim);
  const PackedKernels& kernels = packed_kernels();
  const int64_t attention_bytes = ceil_div(kernels.attention_workspace(a), 64) * 64;
  const Workspace workspace(attention_bytes + bytes, threads);
  for_each_part(threads, queries, workspace, [&](Range part, char* memory) {
    for (int64_t query = part.begin; query < part.end;) {
      const int64_t image = query / a.tokens / a.heads, head = query / a.tokens % a.heads, row = query % a.tokens;
      const int64_t count = std::min(part.end - query, a.tokens - row);
      const int64_t first = image * a.tokens + row;
      PackedAttention of_head = a;
      prepare(of_head, image, head, memory + attention_bytes);
      kernels.attention(of_head, {first, first + count}, {head, head + 1}, memory);
      query += count;
    }
  });
}

inline void run_attention(const PackedAttention& a, int64_t images) {
  run_attention(a, images, 0, [](PackedAttention&, int64_t, int64_t, char*) {});
}

// The layers of a block, in order. In a post-norm block proj and mlp have no residual: norm1 and norm2 normalize their
// results and add it.
struct Block {
  PackedLinear qkv;
  PackedAttention attention;
  PackedLinear proj;
  PackedMlp mlp;
  bool is_post_norm;
  LayerNormForward norm1, norm2;
  const float* x = nullptr;  // the residual stream before the block
  float* out = nullptr;      // and after it
};

// Workspace of a thread that runs at most `rows` rows through the blocks.
inline int64_t chained_workspace(const std::vector<Block>& blocks, int64_t rows) {
  const PackedKernels& kernels = packed_kernels();
  int64_t most = 0;
  for (const Block& b : blocks) {
    most = std::max(
        {most,
         kernels.linear_workspace(b.qkv, rows),
         kernels.linear_workspace(b.proj, rows),
         kernels.attention_workspace(b.attention),
         kernels.mlp_workspace(b.mlp, rows)});
  }
  return most;
}

// What a block computes in between: q, k and v, the attended values, and in post-norm blocks what is normalized.
struct Intermediate {
  char *qkv, *attended;
  float* unnormalized;
};

// A thread's memory while it runs blocks, at most `rows` rows at a time: the kernels' workspace, then the intermediate
// results.
struct BlockMemory {
  int64_t qkv, attended, unnormalized, bytes;
  Intermediate intermediate(char* memory) const {
    return {memory + qkv, memory + attended, reinterpret_cast<float*>(memory + unnormalized)};
  }
};

inline BlockMemory block_memory(const std::vector<Block>& blocks, int64_t rows) {
  const PackedAttention& a = blocks[0].attention;
  const auto aligned = [](int64_t bytes) { return ceil_div(bytes, 64) * 64; };
  const int64_t width = a.heads * a.head_dim, qkv = aligned(chained_workspace(blocks, rows));
  const int64_t attended = qkv + aligned(rows * 3 * width * bytes_of(a.qkv_type));
  const int64_t unnormalized = attended + aligned(rows * width * bytes_of(a.out_type));
  const int64_t channels = blocks[0].is_post_norm ? blocks[0].proj.weight.n : 0;
  return {qkv, attended, unnormalized, unnormalized + aligned(rows * channels * int64_t(sizeof(float)))};
}

inline void project(const Block& b, Range rows, char* memory) {
  packed_kernels().linear(b.qkv, rows, {0, panel_count(b.qkv.weight.n)}, memory);
}

// `rows`: of attention, which are those of windows.
inline void attend(const PackedAttention& a, Range rows, char* memory) {
  packed_kernels().attention(a, rows, {0, a.heads}, memory);
}

// What follows attention.
inline void mix(const Block& b, Range rows, char* memory) {
  const PackedKernels& kernels = packed_kernels();
  const auto normalize = [&](const LayerNormForward& norm) {
    if (b.is_post_norm) cpu_kernels().layer_norm_forward(norm, rows.begin, rows.end);
  };
  kernels.linear(b.proj, rows, {0, panel_count(b.proj.weight.n)}, memory);
  normalize(b.norm1);
  kernels.mlp(b.mlp, rows, memory);
  normalize(b.norm2);
}

// The parameters of a block, in the order of packed_blocks: matrices are packed, and those without a comment are
// vectors, which may be absent.
enum Parameter : size_t {
  norm1_weight,
  norm1_bias,
  qkv,  // [3 H D, C]
  qkv_bias,
  proj,  // [C, H D]
  proj_bias,
  scale1,
  norm2_weight,
  norm2_bias,
  fc1,  // [hidden, C]
  fc1_bias,
  gate,  // [hidden, C] or absent
  gate_bias,
  fc2,  // [C, hidden]
  fc2_bias,
  scale2,
  cosine,  // [H]
  parameter_count
};

// What the blocks of a call have in common.
struct BlockSizes {
  const char* op;
  int64_t tokens, channels, heads, head_dim, hidden;
  Activation activation;
  Precision precision;
  double eps1, eps2, attention_scale;
  bool is_post_norm;

  int64_t width() const { return heads * head_dim; }
  Type type() const { return attention_type(precision); }
  Type out_type() const { return precision == Precision::bfloat16 ? type() : Type::float32; }
  int64_t threads(int64_t rows, bool is_gated) const {
    return worthwhile_threads(
        rows * (channels * 4 * width() + (is_gated ? 3 : 2) * channels * hidden + 2 * tokens * width()));
  }
};

inline BlockSizes block_sizes(
    const char* op,
    const Tensor& x,
    const std::vector<std::optional<Tensor>>& parameters,
    double eps1,
    double eps2,
    int64_t heads,
    int64_t head_dim,
    double attention_scale,
    int64_t hidden,
    const std::string& activation,
    const std::string& precision,
    bool is_post_norm = false) {
  STD_TORCH_CHECK(
      x.dim() == 3 && x.scalar_type() == ScalarType::Float && x.is_contiguous(),
      op,
      ": x must be contiguous float32 [B, N, C]");
  STD_TORCH_CHECK(heads > 0 && head_dim > 0, op, ": heads and head_dim must be positive");
  STD_TORCH_CHECK(
      !parameters.empty() && parameters.size() % parameter_count == 0,
      op,
      ": parameters must have ",
      size_t(parameter_count),
      " elements per block, got ",
      parameters.size());
  return {
      op,
      x.size(1),
      x.size(2),
      heads,
      head_dim,
      hidden,
      activation_of(op, activation),
      precision_of(op, precision),
      eps1,
      eps2,
      attention_scale,
      is_post_norm};
}

// The block whose parameters start at `first`, without positions; `connect` sets what it reads and writes.
inline Block block_of(const BlockSizes& sizes, const std::vector<std::optional<Tensor>>& parameters, size_t first) {
  const char* const op = sizes.op;
  const int64_t channels = sizes.channels, hidden = sizes.hidden, width = sizes.width();
  const auto given = [&](Parameter name) -> const std::optional<Tensor>& { return parameters[first + name]; };
  const auto vector = [&](const char* name, Parameter place) {
    return floats_or_null(op, name, given(place), {channels});
  };
  const auto weight = [&](const char* name, Parameter place, int64_t n, int64_t k, Parameter its_bias) {
    STD_TORCH_CHECK(given(place).has_value(), op, ": ", name, " is missing in block ", first / parameter_count);
    return packed_weight(op, name, *given(place), n, k, sizes.precision, given(its_bias));
  };
  const auto norm_before = [&](const float* gamma, const float* beta, double eps) {
    return sizes.is_post_norm ? Norm{} : Norm{true, gamma, beta, eps};
  };
  const auto norm_after = [&](const float* gamma, const float* beta, double eps) {
    LayerNormForward norm{Type::float32, Type::float32, Type::float32};
    norm.weight = gamma;
    norm.bias = beta;
    norm.channels = channels;
    norm.eps = eps;
    return norm;
  };
  const float* const gamma1 = vector("norm1_weight", norm1_weight);
  const float* const beta1 = vector("norm1_bias", norm1_bias);
  const float* const gamma2 = vector("norm2_weight", norm2_weight);
  const float* const beta2 = vector("norm2_bias", norm2_bias);
  Block b{
      {weight("qkv", qkv, 3 * width, channels, qkv_bias),
       {Type::float32, nullptr, channels},
       sizes.type(),
       nullptr,
       norm_before(gamma1, beta1, sizes.eps1)},
      {sizes.type(),
       nullptr,
       sizes.out_type(),
       nullptr,
       sizes.tokens,
       sizes.heads,
       sizes.head_dim,
       sizes.attention_scale,
       sizes.precision == Precision::int8},
      {weight("proj", proj, channels, width, proj_bias),
       {sizes.out_type(), nullptr, width},
       Type::float32,
       nullptr,
       {},
       Activation::none,
       vector("scale1", scale1)},
      {weight("fc1", fc1, hidden, channels, fc1_bias),
       weight("fc2", fc2, channels, hidden, fc2_bias),
       {Type::float32, nullptr, channels},
       norm_before(gamma2, beta2, sizes.eps2),
       sizes.activation,
       vector("scale2", scale2),
       nullptr,
       nullptr,
       gate_of(op, given(gate), given(gate_bias), hidden, channels, sizes.precision)},
      sizes.is_post_norm,
      norm_after(gamma1, beta1, sizes.eps1),
      norm_after(gamma2, beta2, sizes.eps2)};
  b.attention.cosine = floats_or_null(op, "cosine", given(cosine), {sizes.heads});
  return b;
}

// Sets what a block reads and writes: the residual stream before and after it, and the intermediate results.
inline void connect(Block& b, const float* x, float* out, const Intermediate& between) {
  b.x = x;
  b.out = out;
  b.qkv.x.data = x;
  b.qkv.out = between.qkv;
  b.attention.qkv = between.qkv;
  b.attention.out = between.attended;
  b.proj.x.data = between.attended;
  b.mlp.x.data = out;
  if (b.is_post_norm) {
    b.proj.out = b.mlp.out = between.unnormalized;
    b.norm1.x = b.norm2.x = between.unnormalized;
    b.norm1.y = b.norm2.y = out;
    b.norm1.added = x;
    b.norm2.added = out;
  } else {
    b.proj.out = b.mlp.out = out;
    b.proj.residual = x;
    b.mlp.residual = out;
  }
}

}  // namespace vitfast
