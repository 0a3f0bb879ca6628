#include "csrc/packed/packed_block.h"
#include "csrc/upsample_relations/sparse_rows.h"

namespace vitfast {
namespace {

// Each thread runs its rows through all blocks; one barrier per block, before attention reads all keys and values,
// which are in another buffer than those of the block before.
void run_by_rows(const std::vector<Block>& blocks, int64_t rows, int64_t threads) {
  const Workspace workspace(chained_workspace(blocks, ceil_div(rows, threads)), threads);
  for_each_part(threads, rows, workspace, [&](Range part, char* memory) { project(blocks[0], part, memory); });
  for (size_t i = 0; i < blocks.size(); ++i) {
    for_each_part(threads, rows, workspace, [&](Range part, char* memory) {
      attend(blocks[i].attention, part, memory);
      mix(blocks[i], part, memory);
      if (i + 1 < blocks.size()) project(blocks[i + 1], part, memory);
    });
  }
}

// The block that starts at `row` of x and out, with its intermediate results in the given buffers.
Block from_row(Block b, int64_t row, const Intermediate& between) {
  const int64_t offset = row * b.qkv.weight.k;
  connect(b, b.x + offset, b.out + offset, between);
  return b;
}

// The rows at which the sequences of a batch start, and their number of rows, if the windows of all blocks are the same
// sequences of tokens one after the other, without positions; else nothing.
std::vector<int64_t> sequence_starts(const std::vector<Block>& blocks) {
  const PackedAttention& a = blocks[0].attention;
  for (const Block& b : blocks) {
    const PackedAttention& other = b.attention;
    const bool has_same_windows =
        other.windows.tokens == a.windows.tokens && other.windows.lengths == a.windows.lengths;
    if (!has_same_windows || other.has_bias() || other.cosine != nullptr) return {};
  }
  if (a.windows.lengths == nullptr) return {};
  std::vector<int64_t> starts{0};
  for (int64_t w = 0; w < a.windows.count; ++w) {
    const int64_t* const tokens = a.windows.tokens + w * a.tokens;
    for (int64_t i = 0; i < a.windows.lengths[w]; ++i) {
      if (tokens[i] != starts.back() + i) return {};
    }
    starts.push_back(starts.back() + a.windows.lengths[w]);
  }
  return starts.back() == a.windows.image_tokens ? starts : std::vector<int64_t>{};
}

// Each thread runs groups through blocks; intermediate results stay in its cache. `are_windows`: whether the sequences
// are the windows of one image, rather than images.
void run_by_groups(
    const std::vector<Block>& blocks,
    const std::vector<int64_t>& starts,
    const std::vector<Group>& groups,
    bool are_windows,
    int64_t threads) {
  const PackedAttention& a = blocks[0].attention;
  const int64_t width = a.heads * a.head_dim;
  const BlockMemory layout = block_memory(blocks, max_group_rows(groups));
  const Workspace workspace(layout.bytes, threads);

  const auto run = [&](const Block& block, const Group& group, char* memory) {
    const int64_t first_row = group.rows.begin;
    const Range sequences = group.sequences, rows{0, group.row_count()};
    const Intermediate between = layout.intermediate(memory);
    const Block b = from_row(block, first_row, between);
    project(b, rows, memory);
    if (are_windows) {
      for (int64_t s = sequences.begin; s < sequences.end; ++s) {
        const int64_t row = starts[s] - first_row;
        PackedAttention sequence = b.attention;
        sequence.windows = {};
        sequence.tokens = starts[s + 1] - starts[s];
        sequence.qkv = between.qkv + row * 3 * width * bytes_of(a.qkv_type);
        sequence.out = between.attended + row * width * bytes_of(a.out_type);
        attend(sequence, {0, sequence.tokens}, memory);
      }
    } else {
      const int64_t windows = (sequences.end - sequences.begin) * b.attention.windows.count;
      attend(b.attention, {0, windows * b.attention.tokens}, memory);
    }
    mix(b, rows, memory);
  };

  for_each_step(
      int64_t(groups.size()), int64_t(blocks.size()), threads, [&](int64_t group, int64_t block, int64_t thread) {
        run(blocks[block], groups[group], workspace.part(thread));
      });
}

// Runs one stage after the other, each split among all threads.
void run_by_stages(const Block& b, int64_t rows) {
  const auto normalize = [&](const LayerNormForward& norm) {
    if (b.is_post_norm) parallel(rows, norm.channels, cpu_kernels().layer_norm_forward, norm);
  };
  run_linear(b.qkv, rows);
  run_attention(b.attention, rows / b.attention.image_tokens());
  run_linear(b.proj, rows);
  normalize(b.norm1);
  run_mlp(b.mlp, rows);
  normalize(b.norm2);
}

// Multiplications of the thread that has the most of them, in a GEMM.
int64_t most_in_linear(int64_t rows, int64_t n, int64_t k) {
  const Grid grid = linear_grid(rows, n, k);
  return ceil_div(rows, grid.row_parts) * std::min(ceil_div(panel_count(n), grid.panel_parts) * panel_columns, n) * k;
}

// The share of the threads' time that they wait for the thread with the most multiplications, in a block without
// windows and gate. The time at the barriers itself and differences in memory access are not counted.
double packed_block_idle_share(
    int64_t images, int64_t tokens, int64_t channels, int64_t heads, int64_t head_dim, int64_t hidden) {
  STD_TORCH_CHECK(
      std::min({images, tokens, channels, heads, head_dim, hidden}) > 0 &&
          std::max({images, tokens, channels, heads, head_dim, hidden}) <= 65536,
      "packed_block_idle_share: every size must be from 1 to 65536");
  const int64_t width = heads * head_dim, rows = images * tokens, queries = images * heads * tokens;
  const int64_t of_row = 4 * channels * width + 2 * channels * hidden + 2 * tokens * width;
  const int64_t threads = worthwhile_threads(rows * of_row);
  int64_t most;
  if (images >= threads || is_chained(rows, threads)) {  // threads that run groups rarely wait for each other
    most = ceil_div(rows, threads) * of_row;
  } else {
    const int64_t of_query = 2 * tokens * head_dim, mlp_threads = worthwhile_threads(2 * rows * hidden * channels);
    most = most_in_linear(rows, 3 * width, channels) + most_in_linear(rows, channels, width) +
           ceil_div(queries, worthwhile_threads(queries * of_query)) * of_query;
    most += is_chained(rows, mlp_threads)
                ? ceil_div(rows, mlp_threads) * 2 * hidden * channels
                : most_in_linear(rows, hidden, channels) + most_in_linear(rows, channels, hidden);
  }
  return 1.0 - double(rows * of_row) / double(most * torch::stable::get_num_threads());
}

// Positions of a block in packed_blocks.
constexpr size_t position_count = 7;

// `given`: rotary, bias, windows, patterns, lengths, row_terms and column_terms, each of which may be absent.
void set_positions(const BlockSizes& sizes, Block& b, const std::optional<Tensor>* given, bool is_interleaved) {
  PackedAttention& a = b.attention;
  a.rotary = rotary_of(sizes.op, given[0], is_interleaved, sizes.tokens, sizes.heads, sizes.head_dim);
  STD_TORCH_CHECK(a.cosine == nullptr || a.rotary.tables == nullptr, sizes.op, ": rotary cannot be used with cosine");
  set_windows(sizes.op, a, given[1], given[2], given[3], given[4], given[5], given[6], b.qkv.weight.bias);
}

bool has_windows(const Block& b) {
  return b.attention.windows.tokens != nullptr;
}

Tensor packed_blocks(
    const Tensor& x,  // [B, N, C]
    std::vector<std::optional<Tensor>> parameters,
    std::vector<std::optional<Tensor>> positions,
    double eps1,
    double eps2,
    int64_t heads,
    int64_t head_dim,
    double attention_scale,
    int64_t hidden,
    std::string activation,
    std::string precision,
    bool is_interleaved,
    bool is_post_norm) {
  constexpr const char* op = "packed_blocks";
  const BlockSizes sizes = block_sizes(
      op, x, parameters, eps1, eps2, heads, head_dim, attention_scale, hidden, activation, precision, is_post_norm);
  const int64_t rows = x.size(0) * sizes.tokens, width = sizes.width();
  const Tensor out = new_tensor(x, sizes_of(x));
  if (rows == 0) return out;
  const size_t count = parameters.size() / parameter_count;
  STD_TORCH_CHECK(
      positions.size() == count * position_count,
      op,
      ": positions must have ",
      position_count,
      " elements per block, got ",
      positions.size());
  std::vector<Block> blocks;
  for (size_t i = 0; i < count; ++i) {
    blocks.push_back(block_of(sizes, parameters, i * parameter_count));
    set_positions(sizes, blocks[i], &positions[i * position_count], is_interleaved);
  }

  const int64_t threads = sizes.threads(rows, parameters[gate].has_value());
  std::vector<int64_t> starts = x.size(0) == 1 ? sequence_starts(blocks) : std::vector<int64_t>{};
  const bool are_windows = !starts.empty();
  if (!are_windows) starts = image_starts(x.size(0), sizes.tokens);
  const std::vector<Group> groups = group_sequences(starts, threads);
  const bool by_groups = divides(groups, count, threads);
  const bool by_rows =
      !by_groups && is_chained(rows, threads) && std::none_of(blocks.begin(), blocks.end(), has_windows);
  const int64_t shared_rows = by_groups ? 0 : rows, buffers = by_rows && count > 1 ? 2 : 1;
  const Tensor qkv_rows = new_tensor({buffers, shared_rows, 3 * width}, scalar_type(sizes.type()));
  const Tensor attended = new_tensor({shared_rows, width}, scalar_type(sizes.out_type()));
  const Tensor unnormalized = new_tensor({is_post_norm ? shared_rows : 0, sizes.channels}, ScalarType::Float);
  auto* const out_data = static_cast<float*>(out.mutable_data_ptr());
  for (size_t i = 0; i < count; ++i) {
    const float* const input = i == 0 ? static_cast<const float*>(x.const_data_ptr()) : out_data;
    char* const buffer = static_cast<char*>(qkv_rows.mutable_data_ptr()) +
                         int64_t(i) % buffers * shared_rows * 3 * width * bytes_of(sizes.type());
    connect(
        blocks[i],
        input,
        out_data,
        {buffer,
         static_cast<char*>(attended.mutable_data_ptr()),
         static_cast<float*>(unnormalized.mutable_data_ptr())});
  }
  if (by_groups) {
    run_by_groups(blocks, starts, groups, are_windows, threads);
  } else if (by_rows) {
    run_by_rows(blocks, rows, threads);
  } else {
    for (const Block& b : blocks) run_by_stages(b, rows);
  }
  return out;
}

Tensor packed_attention(
    const Tensor& qkv,  // [B, N, 3, H, D]
    double scale,
    std::string precision_name,
    const std::optional<Tensor>& rotary,  // [H or 1, at most N, 2, D]
    bool is_interleaved,
    const std::optional<Tensor>& bias,          // [patterns, H, n, n]
    const std::optional<Tensor>& windows,       // [W, n]
    const std::optional<Tensor>& patterns,      // [W]
    const std::optional<Tensor>& lengths,       // [W]
    const std::optional<Tensor>& row_terms,     // [D, 2 height - 1]
    const std::optional<Tensor>& column_terms,  // [D, 2 width - 1]
    const std::optional<Tensor>& padding,       // [3 H D]
    const std::optional<Tensor>& cosine,        // [H]
    const std::optional<Tensor>& key_bias       // [B, N]
) {
  constexpr const char* op = "packed_attention";
  const Precision precision = precision_of(op, precision_name);
  STD_TORCH_CHECK(
      qkv.dim() == 5 && qkv.size(2) == 3 &&
          (qkv.scalar_type() == ScalarType::Float || qkv.scalar_type() == ScalarType::BFloat16),
      "packed_attention: qkv must be float32 or bfloat16 [B, N, 3, H, D]");
  const Type type = attention_type(precision);
  const bool is_converted = type == Type::bfloat16 && qkv.scalar_type() == ScalarType::Float;
  const Tensor rows = as_contiguous(is_converted ? as_type(qkv, ScalarType::BFloat16) : qkv);
  const Tensor out = new_tensor(qkv, {qkv.size(0), qkv.size(1), qkv.size(3), qkv.size(4)});
  const int64_t tokens = qkv.size(1), heads = qkv.size(3), head_dim = qkv.size(4);
  PackedAttention a{
      type_of(rows),
      rows.const_data_ptr(),
      type_of(out),
      out.mutable_data_ptr(),
      tokens,
      heads,
      head_dim,
      scale,
      precision == Precision::int8,
      rotary_of(op, rotary, is_interleaved, tokens, heads, head_dim)};
  set_windows(
      op,
      a,
      bias,
      windows,
      patterns,
      lengths,
      row_terms,
      column_terms,
      floats_or_null(op, "padding", padding, {3 * heads * head_dim}));
  a.cosine = floats_or_null(op, "cosine", cosine, {heads});
  STD_TORCH_CHECK(
      a.cosine == nullptr || a.rotary.tables == nullptr, "packed_attention: rotary cannot be used with cosine");
  const float* keys = floats_or_null(op, "key_bias", key_bias, {qkv.size(0), tokens});
  STD_TORCH_CHECK(
      keys == nullptr || (!a.is_gathered() && !a.has_bias()),
      "packed_attention: key_bias cannot be used with windows, cosine and other biases");
  if (keys != nullptr) a.bias = keys;  // its strides are zero: the same for all heads and queries
  run_attention(a, qkv.size(0), 0, [&](PackedAttention& of_head, int64_t image, int64_t, char*) {
    if (keys != nullptr) of_head.bias = keys + image * tokens;
  });
  return out;
}

std::tuple<Tensor, std::optional<Tensor>> packed_related_attention(
    const Tensor& qkv,                       // [B, N, 3, H, D]
    const std::optional<Tensor>& relations,  // [B, H, n, n]
    const std::optional<Tensor>& matrix,     // [N, n]
    double scale,
    bool return_logits) {
  constexpr const char* op = "packed_related_attention: ";
  STD_TORCH_CHECK(
      qkv.dim() == 5 && qkv.size(2) == 3 && qkv.scalar_type() == ScalarType::Float && qkv.size(4) > 0,
      op,
      "qkv must be float32 [B, N, 3, H, D], D above 0");
  const int64_t images = qkv.size(0), tokens = qkv.size(1), heads = qkv.size(3), head_dim = qkv.size(4);
  const int64_t coarse = matrix.has_value() ? matrix->size(1) : tokens;
  if (matrix.has_value()) {
    STD_TORCH_CHECK(
        matrix->dim() == 2 && matrix->size(0) == tokens && matrix->scalar_type() == ScalarType::Float &&
            matrix->is_contiguous(),
        op,
        "matrix must be contiguous float32 [N, n]");
  }
  if (relations.has_value()) {
    STD_TORCH_CHECK(
        relations->scalar_type() == ScalarType::Float && relations->dim() == 4 && relations->size(0) == images &&
            relations->size(1) == heads && relations->size(2) == coarse && relations->size(3) == coarse,
        op,
        "relations must be float32 [B, H, n, n], where n is N without a matrix");
  }
  const Tensor rows = as_contiguous(qkv);
  const Tensor out = new_tensor(qkv, {images, tokens, heads, head_dim});
  std::optional<Tensor> logits;
  if (return_logits) logits = new_tensor(qkv, {images, heads, tokens, tokens});
  PackedAttention a{
      Type::float32, rows.const_data_ptr(), Type::float32, out.mutable_data_ptr(), tokens, heads, head_dim, scale};
  if (return_logits) a.logits = static_cast<float*>(logits->mutable_data_ptr());
  if (!relations.has_value()) {
    run_attention(a, images);
    return {out, logits};
  }
  const Tensor bias = relations->stride(3) == 1 ? *relations : as_contiguous(*relations);
  std::optional<SparseRows<float>> sparse;
  if (matrix.has_value()) sparse.emplace(*matrix);
  a.bias_stride = matrix.has_value() ? tokens : bias.stride(2);
  const int64_t bytes = matrix.has_value() ? tokens * tokens * int64_t(sizeof(float)) : 0;
  run_attention(a, images, bytes, [&](PackedAttention& of_head, int64_t image, int64_t head, char* memory) {
    const auto* data = static_cast<const float*>(bias.const_data_ptr());
    of_head.bias = data + image * bias.stride(0) + head * bias.stride(1);
    if (!sparse.has_value()) return;
    UpsampleRelations upsample{Type::float32, of_head.bias, 0, 0, bias.stride(2), memory, 1, coarse, tokens};
    sparse->add_to(upsample);
    cpu_kernels().upsample_relations(upsample, 0, 1);
    of_head.bias = reinterpret_cast<const float*>(memory);
  });
  return {out, logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_attention", CHECKED_BOX(&packed_attention));
  m.impl("packed_related_attention", CHECKED_BOX(&packed_related_attention));
  m.impl("packed_blocks", CHECKED_BOX(&packed_blocks));
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("packed_block_idle_share", CHECKED_BOX(&packed_block_idle_share));
}

}  // namespace vitfast
