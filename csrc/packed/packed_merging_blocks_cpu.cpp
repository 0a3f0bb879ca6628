#include <cmath>

#include "csrc/packed/packed_block.h"

namespace vitfast {
namespace {

// Blocks that merge tokens between attention and MLP. The rows of a group of images stay next to each other in
// `stream`: they move to the front as their number decreases.
struct MergingBlocks {
  std::vector<Block> blocks;    // the tokens of their attention are those before merging
  std::vector<int64_t> counts;  // tokens that each block merges; none after the first 0
  int64_t tokens, channels, prefix;
  const float* x;   // [images, tokens, channels]
  float* stream;    // [images, tokens, channels]
  float* out;       // [images, tokens after the last block, channels]
  float* sizes[2];  // [images, tokens]: before and after a block, in turn
  float* key_bias;  // [images, tokens]: their logarithms
  bool has_sizes;   // before the first block; else all are one
  int64_t* places;  // [images, tokens]
  int64_t* step;    // [images, tokens]: the places after one block of the tokens before it

  bool has_key_bias(size_t i) const { return has_sizes || (i > 0 && counts[0] > 0); }
  int64_t tokens_before(size_t i) const { return blocks[i].attention.tokens; }
  int64_t tokens_after(size_t i) const { return tokens_before(i) - counts[i]; }

  // The rows of a group before and after block i; `first` is its first image.
  const float* input(size_t i, int64_t first) const { return (i == 0 ? x : stream) + first * tokens * channels; }
  float* result(size_t i, int64_t first) const {
    const bool is_last = i + 1 == blocks.size();
    return is_last ? out + first * tokens_after(i) * channels : stream + first * tokens * channels;
  }
};

// Memory of some images' intermediate results.
struct Buffers {
  Intermediate between;
  float* mixed;  // the residual stream between attention and merging
};

// The block i for a group whose first image is `first`.
Block connected(const MergingBlocks& m, size_t i, int64_t first, const Buffers& buffers) {
  Block b = m.blocks[i];
  float* const result = m.result(i, first);
  connect(b, m.input(i, first), m.counts[i] > 0 ? buffers.mixed : result, buffers.between);
  b.mlp.x.data = b.mlp.residual = b.mlp.out = result;
  return b;
}

// Merges tokens of an image, whose rows in the buffers of block b start at the given place of an image.
void merge_image(const MergingBlocks& m, size_t i, const Block& b, int64_t image, int64_t place) {
  const PackedAttention& a = b.attention;
  const int64_t width = a.heads * a.head_dim, first = image * m.tokens, count = m.counts[i];
  float* const sizes = m.sizes[(i + 1) % 2] + first;
  const MergeTokens step{
      static_cast<const float*>(b.proj.out) + place * a.tokens * m.channels,
      a.qkv_type,
      static_cast<const char*>(a.qkv) + (place * a.tokens * 3 + 1) * width * bytes_of(a.qkv_type),
      0,
      3 * width,
      m.sizes[i % 2] + first,
      a.tokens,
      m.channels,
      a.heads,
      a.head_dim,
      count,
      m.prefix,
      b.mlp.out + place * (a.tokens - count) * m.channels,
      sizes,
      m.step + first};
  cpu_kernels().merge_tokens(step, 0, 1);
  for (int64_t t = 0; t < a.tokens - count; ++t) m.key_bias[first + t] = std::log(sizes[t]);
  for (int64_t t = 0; t < m.tokens; ++t) m.places[first + t] = m.step[first + m.places[first + t]];
}

// Each thread runs groups of images through blocks.
void run_by_groups(const MergingBlocks& m, const std::vector<Group>& groups, int64_t threads) {
  const PackedKernels& kernels = packed_kernels();
  const int64_t rows = max_group_rows(groups);
  const BlockMemory layout = block_memory(m.blocks, rows);
  const Workspace workspace(layout.bytes + rows * m.channels * int64_t(sizeof(float)), threads);
  const int64_t steps = int64_t(m.blocks.size());
  for_each_step(int64_t(groups.size()), steps, threads, [&](int64_t group, int64_t i, int64_t thread) {
    const auto [first, last] = groups[group].sequences;
    const int64_t images = last - first, tokens = m.tokens_before(i);
    char* const memory = workspace.part(thread);
    const Buffers buffers{layout.intermediate(memory), reinterpret_cast<float*>(memory + layout.bytes)};
    Block b = connected(m, i, first, buffers);
    project(b, {0, images * tokens}, memory);
    for (int64_t g = 0; g < images; ++g) {
      if (m.has_key_bias(i)) b.attention.bias = m.key_bias + (first + g) * m.tokens;
      attend(b.attention, {g * tokens, (g + 1) * tokens}, memory);
    }
    kernels.linear(b.proj, {0, images * tokens}, {0, panel_count(b.proj.weight.n)}, memory);
    for (int64_t g = 0; g < images && m.counts[i] > 0; ++g) merge_image(m, i, b, first + g, g);
    kernels.mlp(b.mlp, {0, images * m.tokens_after(i)}, memory);
  });
}

// Runs one part of a block after the other, each split among all threads.
void run_by_stages(const MergingBlocks& m, int64_t images) {
  const PackedAttention& a = m.blocks[0].attention;
  const int64_t rows = images * m.tokens, width = a.heads * a.head_dim;
  const Tensor qkv = new_tensor({rows, 3 * width}, scalar_type(a.qkv_type));
  const Tensor attended = new_tensor({rows, width}, scalar_type(a.out_type));
  const Tensor mixed = new_tensor({rows, m.channels}, ScalarType::Float);
  const Buffers buffers{
      {static_cast<char*>(qkv.mutable_data_ptr()), static_cast<char*>(attended.mutable_data_ptr()), nullptr},
      static_cast<float*>(mixed.mutable_data_ptr())};
  for (size_t i = 0; i < m.blocks.size(); ++i) {
    const Block b = connected(m, i, 0, buffers);
    const int64_t block_rows = images * m.tokens_before(i);
    run_linear(b.qkv, block_rows);
    run_attention(b.attention, images, 0, [&](PackedAttention& of_head, int64_t image, int64_t, char*) {
      if (m.has_key_bias(i)) of_head.bias = m.key_bias + image * m.tokens;
    });
    run_linear(b.proj, block_rows);
    if (m.counts[i] > 0) {
      parallel(images, m.tokens * (m.tokens + m.channels), [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) merge_image(m, i, b, image, image);
      });
    }
    run_mlp(b.mlp, images * m.tokens_after(i));
  }
}

std::tuple<Tensor, Tensor, Tensor> packed_merging_blocks(
    const Tensor& x,                     // [B, N, C]
    const std::optional<Tensor>& sizes,  // [B, N]
    std::vector<std::optional<Tensor>> parameters,
    double eps1,
    double eps2,
    int64_t heads,
    int64_t head_dim,
    double attention_scale,
    int64_t hidden,
    std::string activation,
    std::string precision,
    int64_t count,
    int64_t prefix) {
  constexpr const char* op = "packed_merging_blocks";
  const BlockSizes shared =
      block_sizes(op, x, parameters, eps1, eps2, heads, head_dim, attention_scale, hidden, activation, precision);
  const int64_t images = x.size(0), tokens = shared.tokens, channels = shared.channels;
  const float* const given = floats_or_null(op, "sizes", sizes, {images, tokens});
  MergingBlocks m{{}, {}, tokens, channels, prefix};
  int64_t left = tokens;
  for (size_t first = 0; first < parameters.size(); first += parameter_count) {
    m.blocks.push_back(block_of(shared, parameters, first));
    m.blocks.back().attention.tokens = left;
    m.counts.push_back(std::min(count, std::max(left - prefix, int64_t(0)) / 2));
    left -= m.counts.back();
  }
  const Tensor out = new_tensor(x, {images, left, channels});
  const Tensor new_sizes = new_tensor(x, {images, left});
  const Tensor places = new_tensor({images, tokens}, ScalarType::Long);
  const Tensor step = new_tensor({images, tokens}, ScalarType::Long);
  const Tensor stream = new_tensor(x, {images, tokens, channels});
  const Tensor by_token = new_tensor(x, {3, images, tokens});
  const int64_t all = images * tokens;
  if (all == 0) return {out, new_sizes, places};
  m.x = static_cast<const float*>(x.const_data_ptr());
  m.stream = static_cast<float*>(stream.mutable_data_ptr());
  m.out = static_cast<float*>(out.mutable_data_ptr());
  m.key_bias = static_cast<float*>(by_token.mutable_data_ptr());
  m.sizes[0] = m.key_bias + all;
  m.sizes[1] = m.sizes[0] + all;
  m.has_sizes = given != nullptr;
  m.places = static_cast<int64_t*>(places.mutable_data_ptr());
  m.step = static_cast<int64_t*>(step.mutable_data_ptr());
  for (int64_t t = 0; t < all; ++t) {
    m.sizes[0][t] = given == nullptr ? 1 : given[t];
    if (m.has_sizes) m.key_bias[t] = std::log(given[t]);
    m.places[t] = t % tokens;
  }
  const int64_t threads = shared.threads(all, parameters[gate].has_value());
  const std::vector<Group> groups = group_sequences(image_starts(images, tokens), threads);
  if (divides(groups, m.blocks.size(), threads)) {
    run_by_groups(m, groups, threads);
  } else {
    run_by_stages(m, images);
  }
  const int64_t merging = std::count_if(m.counts.begin(), m.counts.end(), [](int64_t merged) { return merged > 0; });
  auto* const last_sizes = static_cast<float*>(new_sizes.mutable_data_ptr());
  for (int64_t image = 0; image < images; ++image) {
    std::copy_n(m.sizes[merging % 2] + image * tokens, left, last_sizes + image * left);
  }
  return {out, new_sizes, places};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_merging_blocks", CHECKED_BOX(&packed_merging_blocks));
}

}  // namespace vitfast
