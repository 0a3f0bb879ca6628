// Attention for inference. K and V of a head are packed once, in the microkernel's format. Then tiles of 6 queries:
// logits of whole rows, softmax in L1, GEMM with V. Queries are read in place.

#pragma once

#include "csrc/packed/attention_amx.h"
#include "csrc/packed/attention_gemm.h"
#include "csrc/packed/attention_int16.h"
#include "csrc/packed/attention_operands.h"
#include "csrc/packed/attention_softmax.h"
#include "csrc/packed/attention_windows.h"

namespace vitfast::VITFAST_ISA {

// float32 words. A bfloat16 source is widened.
struct FloatAttention {
  using Dot = FloatDot;
  using Number = float;  // of the weights
  static constexpr float key_scale = 1, value_scale = 1;
  static constexpr int64_t per_word = 1;
  static int64_t weight_words(int64_t columns) { return columns; }  // of a row of weights
  static int64_t value_words(int64_t tokens) { return tokens; }     // those multiplied with values
  template <typename T>
  static void pack_queries(
      const T* q, int64_t stride, int64_t count, int64_t head_dim, uint32_t* words, int64_t, float*) {
    pack_rows(q, stride, count, head_dim, 1.0f, reinterpret_cast<float*>(words));
  }
  template <typename T>
  static void pack_keys(const T* k, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words, uint32_t*) {
    pack_key_panels(k, stride, tokens, head_dim, words);
  }
  template <typename T>
  static void pack_values(const T* v, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    pack_value_panels(tokens, head_dim, words, [&](int64_t i, int64_t d, int64_t count) __attribute__((always_inline)) {
      return bit_cast<Integers<float>>(load_up_to<float>(v + i * stride + d, count));
    });
  }
};

#if defined(__AVX512BF16__)
// The bits of up to a vector of numbers, one per word.
VITFAST_INLINE Words load_bits(const BFloat16* p, int64_t count) {
  Halves halves{};
  if (count == width<float>) {
    std::memcpy(&halves, p, sizeof(halves));
  } else {
    std::memcpy(&halves, p, size_t(count) * sizeof(BFloat16));
  }
  return __builtin_convertvector(halves, Words);
}

// Pairs of bfloat16, of an even head_dim.
struct BFloat16Attention {
  using Dot = BFloat16Dot;
  using Number = BFloat16;
  static constexpr float key_scale = 1, value_scale = 1;
  static constexpr int64_t per_word = 2;
  static int64_t weight_words(int64_t columns) { return columns / 2; }
  static int64_t value_words(int64_t tokens) { return ceil_div(tokens, 2); }
  static void pack_keys(
      const BFloat16* k, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words, uint32_t*) {
    // the vectors only carry the bits of a pair
    pack_key_panels(reinterpret_cast<const float*>(k), stride / 2, tokens, head_dim / 2, words);
  }
  // A word: the values of tokens 2i and 2i + 1.
  static void pack_values(const BFloat16* v, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    pack_value_panels(
        ceil_div(tokens, 2), head_dim, words, [&](int64_t i, int64_t d, int64_t count) __attribute__((always_inline)) {
          const BFloat16* row = v + 2 * i * stride + d;
          const Words even = load_bits(row, count);
          const Words odd = 2 * i + 1 < tokens ? load_bits(row + stride, count) : Words{};
          return bit_cast<Integers<float>>(even | odd << 16);
        });
  }
};
#endif

struct AttentionScratch {
  AttentionScratch(Arena& arena, const PackedAttention& a)
      : columns(padded<float>(a.tokens)),
        channels(padded<float>(a.head_dim)),
        keys(arena.take<uint32_t>((a.head_dim + 1) * columns)),
        values(arena.take<uint32_t>(a.tokens * channels)),
        queries(arena.take<uint32_t>(tile_rows * channels)),
        logits(arena.take<float>(tile_rows * columns)),
        weights(arena.take<uint32_t>(tile_rows * columns)),
        out(arena.take<char>(tile_rows * channels * int64_t(sizeof(float)))),
        rotated(take_rotated(arena, a)) {}
  const int64_t columns, channels;
  uint32_t *keys, *values;
  uint32_t* queries;  // of types that have to be converted
  float query_scales[tile_rows];
  float* logits;
  uint32_t* weights;
  char* out;  // of heads that do not fill whole vectors
  char* rotated;
};

// A tile of queries as words, and the row and column of its result.
struct QueryTile {
  const uint32_t* words;
  int64_t stride;
  int64_t row, channel;
};

// Adds a query's bias on rows and columns, divided by the scale that follows.
VITFAST_INLINE void add_query_terms(const PackedAttention& a, int64_t query, float* logits) {
  const int64_t height = a.query_bias.height, width = a.query_bias.width;
  const float* rows = a.query_terms + query * (height + width);
  const float* columns = rows + height;
  const float unscaled = float(1 / a.scale);
  for (int64_t y = 0; y < height; ++y, logits += width) {
    const Vector<float> of_row = broadcast(rows[y]);
    for_each_vector<float>(width, [&](int64_t x, int64_t n) __attribute__((always_inline)) {
      const Vector<float> term = (load_up_to<float>(columns + x, n) + of_row) * unscaled;
      store_up_to<float>(logits + x, load_up_to<float>(logits + x, n) + term, n);
    });
  }
}

// Scales a row of logits, adds the bias, and copies them to a.logits if requested.
VITFAST_INLINE void finish_logits(
    const PackedAttention& a, const QueryTile& q, int r, float* logits, float* lane_maxima) {
  const int64_t image = (q.row + r) / a.tokens, row = (q.row + r) % a.tokens, head = q.channel / a.head_dim;
  const float* bias = a.bias == nullptr ? nullptr : a.bias + head * a.bias_head_stride + row * a.bias_stride;
  float* copy = a.logits == nullptr ? nullptr : a.logits + ((image * a.heads + head) * a.tokens + row) * a.tokens;
  if (a.query_terms != nullptr) add_query_terms(a, row, logits);
  Vector<float> maxima = broadcast(-__builtin_inff());
  for_each_vector<float>(a.tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    Vector<float> v = load(logits + j) * float(a.scale);  // minus infinity after the last token
    if (bias != nullptr) v += load_up_to<float>(bias + j, n);
    if (copy != nullptr) store_up_to<float>(copy + j, v, n);
    store(logits + j, v);
    maxima = larger(v, maxima);
  });
  store(lane_maxima, maxima);
}

// a.scale includes the scale of the keys.
template <typename Kind, int rows>
void attend_tile(const PackedAttention& a, const QueryTile& q, const AttentionScratch& s, const Kind& kind) {
  using Dot = typename Kind::Dot;
  constexpr int64_t w = width<float>;
  float lane_maxima[rows * w], maxima[rows], factors[rows];
  for (int64_t i = 0; i < rows * w; ++i) lane_maxima[i] = -__builtin_inff();
  const bool is_whole = a.head_dim % w == 0;
  const int64_t element = element_bytes(a.out_type);
  const int64_t stride = a.heads * a.head_dim;
  char* const target = static_cast<char*>(a.out) + (q.row * stride + q.channel) * element;
  prefetch_rows(target, stride * element, rows, a.head_dim * element);
  multiply_panels<Dot, rows>(
      q.words,
      q.stride,
      s.keys,
      ColumnPanels(a.tokens),
      a.head_dim / Kind::per_word,
      LogitSink{s.logits, s.columns, lane_maxima, s.query_scales});
  double scale = a.scale;
  if (a.has_bias() || a.logits != nullptr) {
    for (int r = 0; r < rows; ++r) finish_logits(a, q, r, s.logits + r * s.columns, lane_maxima + r * w);
    scale = 1;
  }
  const float scale_log2 = float(scale * 1.4426950408889634);
  const int64_t weight_words = Kind::weight_words(s.columns);
  for (int r = 0; r < rows; ++r) maxima[r] = largest_lane(load(lane_maxima + r * w));
  // as many rows as fit the registers
  constexpr int together = VITFAST_VECTOR_BYTES == 64 ? rows : 1;
  for (int r = 0; r < rows; r += together) {
    auto* weights = reinterpret_cast<typename Kind::Number*>(s.weights + r * weight_words);
    exponentiate<together>(s.logits + r * s.columns, s.columns, scale_log2, maxima + r, weights, factors + r);
  }
  for (int r = 0; r < rows; ++r) factors[r] *= kind.value_scale;
  multiply_panels<Dot, rows>(
      s.weights,
      weight_words,
      s.values,
      ColumnPanels(a.head_dim),
      Kind::value_words(a.tokens),
      ResultSink{a.out_type, is_whole ? target : s.out, is_whole ? stride : s.channels, factors});
  for (int r = 0; r < (is_whole ? 0 : rows); ++r) {
    std::memcpy(target + r * stride * element, s.out + r * s.channels * element, size_t(a.head_dim * element));
  }
}

// One head of one image: the queries [begin, end).
template <typename Kind, typename T>
void attend(const PackedAttention& a, int64_t image, int64_t head, int64_t begin, int64_t end, AttentionScratch& s) {
  constexpr bool reads_in_place = sizeof(T) == sizeof(typename Kind::Number);
  const HeadOperands<T> x = head_operands<T>(a, image, head, begin, end, s.rotated);
  const T* const q = x.q;
  const int64_t stride = x.stride;
  Kind kind;
  kind.pack_keys(x.k, stride, a.tokens, a.head_dim, s.keys, s.values);
  kind.pack_values(x.v, x.v_stride, a.tokens, a.head_dim, s.values);
  PackedAttention scaled = a;
  scaled.scale *= kind.key_scale;
  const int64_t tiles = ceil_div(end - begin, tile_rows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = begin + t * (end - begin) / tiles, last = begin + (t + 1) * (end - begin) / tiles;
    QueryTile tile{
        reinterpret_cast<const uint32_t*>(q + row * stride),
        stride / Kind::per_word,
        image * a.tokens + row,
        head * a.head_dim};
    if constexpr (!reads_in_place) {
      Kind::pack_queries(q + row * stride, stride, last - row, a.head_dim, s.queries, s.channels, s.query_scales);
      tile.words = s.queries;
      tile.stride = s.channels;
    }
    const int64_t rest = end - last < tile_rows ? end - last : tile_rows;
    prefetch_rows(q + last * stride, stride * int64_t(sizeof(T)), rest, a.head_dim * int64_t(sizeof(T)));
    with_constant<6, 5, 4, 3, 2, 1>(
        last - row, [&](auto rows) { attend_tile<Kind, int(rows)>(scaled, tile, s, kind); });
  }
}

// Calls attend(image, head, first query, last query) for every head of a part.
template <typename Attend>
void for_each_head(const PackedAttention& a, Range rows, Range heads, const Attend& attend) {
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t image = row / a.tokens, first = row % a.tokens, rest = rows.end - image * a.tokens;
    const int64_t last = rest < a.tokens ? rest : a.tokens;
    for (int64_t head = heads.begin; head < heads.end; ++head) attend(image, head, first, last);
    row = image * a.tokens + last;
  }
}

template <typename Kind, typename T>
void attention_rows(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  Arena arena(workspace);
  AttentionScratch scratch(arena, a);
  for_each_head(a, rows, heads, [&](int64_t image, int64_t head, int64_t first, int64_t last) {
    attend<Kind, T>(a, image, head, first, last, scratch);
  });
}

// The attention that is compiled for this instruction set; the one that it extends computes the rest.
#if defined(__AMX_BF16__)

using OwnAttentionScratch = TileScratch;

inline bool is_own(const PackedAttention& a) {
  return is_of_tiles(a);
}

inline void attend_own(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  Arena arena(workspace);
  const TileScratch scratch(arena, a);
  const TileRegisters registers;
  for_each_head(a, rows, heads, [&](int64_t image, int64_t head, int64_t first, int64_t last) {
    TiledHead(a, image, head, head_operands<BFloat16>(a, image, head, first, last, scratch.rotated), scratch)
        .attend(first, last);
  });
}

#elif defined(__AVX512BF16__)

using OwnAttentionScratch = AttentionScratch;

inline bool is_own(const PackedAttention& a) {
  return a.qkv_type == Type::bfloat16 && a.head_dim % 2 == 0;
}

inline void attend_own(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  attention_rows<BFloat16Attention, BFloat16>(a, rows, heads, workspace);
}

#else

using OwnAttentionScratch = AttentionScratch;

inline bool is_of_int16(const PackedAttention& a) {
  return has_int16_attention && a.is_int8 && a.qkv_type == Type::float32 && a.head_dim % 2 == 0 &&
         a.tokens <= max_int16_tokens;
}

inline bool is_own(const PackedAttention& a) {
  return !is_extension || is_of_int16(a);
}

inline void attend_own(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  if constexpr (has_int16_attention) {
    if (is_of_int16(a)) return attention_rows<Int16Attention, float>(a, rows, heads, workspace);
  }
  if constexpr (is_extension) return;
  if (a.qkv_type == Type::float32) return attention_rows<FloatAttention, float>(a, rows, heads, workspace);
  attention_rows<FloatAttention, BFloat16>(a, rows, heads, workspace);
}

#endif

inline int64_t plain_workspace(const PackedAttention& a) {
  return is_own(a) ? bytes_of<OwnAttentionScratch>(a) : extended.attention_workspace(a);
}

inline void plain_attention(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  if (is_own(a)) return attend_own(a, rows, heads, workspace);
  extended.attention(a, rows, heads, workspace);
}

int64_t attention_workspace(const PackedAttention& a) {
  if (!a.is_gathered()) return plain_workspace(a);
  return bytes_of<GatheredHead>(a) + plain_workspace(without_gathering(a));
}

void packed_attention(const PackedAttention& a, Range rows, Range heads, char* workspace) {
  if (!a.is_gathered()) return plain_attention(a, rows, heads, workspace);
  Arena arena(workspace);
  const GatheredHead buffers(arena, a);
  char* const rest = workspace + arena.used();
  for_each_head(a, rows, heads, [&](int64_t window, int64_t head, int64_t first, int64_t last) {
    last = last < length_of(a, window) ? last : length_of(a, window);
    if (first >= last) return;
    gather_head(a, window, head, {first, last}, buffers);
    plain_attention(gathered(a, window, head, buffers), {first, last}, {0, 1}, rest);
    scatter_head(a, window, head, {first, last}, buffers);
  });
}

}  // namespace vitfast::VITFAST_ISA
