// Attention for inference. K and V of a head are packed once, as words of the dot: K [D / k, N] and V [N / k, D], with
// k numbers a word. Then tiles of 6 queries: logits of the whole row, softmax in the first-level cache, times V.
// Queries are read where they lie.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

// out[rows, vectors] = a[rows, depth] · b[depth, vectors], in words.
template <typename Dot, int rows, int vectors>
void multiply_small(
    const uint32_t* a,
    int64_t a_stride,
    const uint32_t* b,
    int64_t b_stride,
    int64_t depth,
    float* out,
    int64_t stride) {
  constexpr int64_t w = width<float>;
  Vector<float> sums[rows][vectors];
  // unrolled by order: GCC would see a memset and a memcpy, and keep the sums in memory
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vector<float>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Integers<float> b_row[vectors];
    for (int v = 0; v < vectors; ++v) b_row[v] = load_integers(b + k * b_stride + v * w);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Integers<float> a_word = broadcast_word(a + r * a_stride + k);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) Dot::add(sums[r][v], a_word, b_row[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(out + r * stride + v * w, sums[r][v]);
  }
}

template <typename Dot, int vectors>
VITFAST_INLINE void multiply_small(
    int64_t rows,
    const uint32_t* a,
    int64_t a_stride,
    const uint32_t* b,
    int64_t b_stride,
    int64_t depth,
    float* out,
    int64_t stride) {
  switch (rows) {
    case 6:
      return multiply_small<Dot, 6, vectors>(a, a_stride, b, b_stride, depth, out, stride);
    case 5:
      return multiply_small<Dot, 5, vectors>(a, a_stride, b, b_stride, depth, out, stride);
    case 4:
      return multiply_small<Dot, 4, vectors>(a, a_stride, b, b_stride, depth, out, stride);
    case 3:
      return multiply_small<Dot, 3, vectors>(a, a_stride, b, b_stride, depth, out, stride);
    case 2:
      return multiply_small<Dot, 2, vectors>(a, a_stride, b, b_stride, depth, out, stride);
    case 1:
      return multiply_small<Dot, 1, vectors>(a, a_stride, b, b_stride, depth, out, stride);
  }
}

// All columns, in panels of nearly the same width; `columns` is a multiple of the vectors' width and b's stride.
template <typename Dot>
void multiply_columns(
    int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t columns, int64_t depth, float* out) {
  const int64_t vectors = columns / width<float>, panels = divide_up(vectors, tile_vectors);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * vectors / panels, last = (panel + 1) * vectors / panels;
    const uint32_t* b_panel = b + first * width<float>;
    float* target = out + first * width<float>;
    switch (last - first) {
      case 1:
        multiply_small<Dot, 1>(rows, a, a_stride, b_panel, columns, depth, target, columns);
        break;
      case 2:
        multiply_small<Dot, 2>(rows, a, a_stride, b_panel, columns, depth, target, columns);
        break;
      case 3:
        if constexpr (tile_vectors > 2)
          multiply_small<Dot, 3>(rows, a, a_stride, b_panel, columns, depth, target, columns);
        break;
      case 4:
        if constexpr (tile_vectors > 2)
          multiply_small<Dot, 4>(rows, a, a_stride, b_panel, columns, depth, target, columns);
        break;
    }
  }
}

// float32 words. A bfloat16 source is widened.
struct FloatAttention {
  using Dot = FloatDot;
  using Number = float;  // of the probabilities
  static constexpr int64_t per_word = 1;
  static constexpr Accuracy accuracy = Accuracy::full;
  static VITFAST_INLINE void store_number(float* p, Vector<float> v) { store(p, v); }
  template <typename T>
  static void pack_keys(const T* k, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    pack_transposed(k, stride, tokens, head_dim, reinterpret_cast<float*>(words));
  }
  template <typename T>
  static void pack_values(const T* v, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    pack_rows(v, stride, tokens, head_dim, 1.0f, reinterpret_cast<float*>(words));
  }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16; an odd head_dim has a half word of padding that its caller has made.
struct BFloat16Attention {
  using Dot = BFloat16Dot;
  using Number = BFloat16;
  static constexpr int64_t per_word = 2;
  static constexpr Accuracy accuracy = Accuracy::narrow;
  static VITFAST_INLINE void store_number(BFloat16* p, Vector<float> v) { store_bfloat16(p, v); }
  static void pack_keys(const BFloat16* k, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    // the vectors only carry the bits of a pair
    const auto* pairs = reinterpret_cast<const float*>(k);
    pack_transposed(pairs, stride / 2, tokens, head_dim / 2, reinterpret_cast<float*>(words));
  }
  // words[i][d]: the values of tokens 2i and 2i + 1
  static void pack_values(const BFloat16* v, int64_t stride, int64_t tokens, int64_t head_dim, uint32_t* words) {
    const int64_t columns = padded<float>(head_dim);
    for (int64_t i = 0; i < tokens; i += 2) {
      for_each_vector<float>(head_dim, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        const Integers<float> even = bit_cast<Integers<float>>(load_up_to<float>(v + i * stride + d, count));
        Integers<float> odd{};
        if (i + 1 < tokens) odd = bit_cast<Integers<float>>(load_up_to<float>(v + (i + 1) * stride + d, count));
        const Integers<float> pair = bit_cast<Integers<float>>(bit_cast<Words>(even) >> 16) | odd;
        std::memcpy(words + i / 2 * columns + d, &pair, sizeof(pair));
      });
    }
  }
};
#endif

// A row of logits becomes exp(scale (logit - maximum)) in the type of the next product's operand; returns 1 / their
// sum. Columns behind the last token become zero.
template <typename Kind>
VITFAST_INLINE float exponentiate(float* logits, int64_t tokens, float scale_log2, typename Kind::Number* weights) {
  constexpr int64_t w = width<float>;
  const int64_t columns = padded<float>(tokens);
  for (int64_t j = tokens; j < columns; ++j) logits[j] = -__builtin_inff();
  Vector<float> maxima = load(logits);
  for (int64_t j = w; j < columns; j += w) {
    const Vector<float> v = load(logits + j);
    maxima = v > maxima ? v : maxima;
  }
#if VITFAST_VECTOR_BYTES == 64
  const float maximum = _mm512_reduce_max_ps((__m512)maxima);
#else
  const float maximum = max_across<float>(maxima);
#endif
  const float offset = maximum * scale_log2;
  Vector<float> sum{};
  for (int64_t j = 0; j < columns; j += w) {
    const Vector<float> e = exp2<Kind::accuracy>(load(logits + j) * scale_log2 - offset);
    Kind::store_number(weights + j, e);
    sum += e;
  }
  return 1.0f / sum_lanes(sum);
}

struct AttentionScratch {
  AttentionScratch(Arena& arena, const PackedAttention& a)
      : columns(padded<float>(a.tokens)),
        channels(padded<float>(a.head_dim)),
        keys(arena.take<uint32_t>(a.head_dim * columns)),
        values(arena.take<uint32_t>(a.tokens * channels)),
        queries(arena.take<uint32_t>(tile_rows * channels)),
        logits(arena.take<float>(tile_rows * columns)),
        weights(arena.take<uint32_t>(tile_rows * columns)),
        out(arena.take<float>(tile_rows * channels)) {}
  const int64_t columns, channels;
  uint32_t *keys, *values;
  uint32_t* queries;  // of the types whose words have to be made
  float* logits;
  uint32_t* weights;
  float* out;
};

inline int64_t attention_workspace(const PackedAttention& a) {
  Arena arena(nullptr);
  AttentionScratch(arena, a);
  return arena.used();
}

// One head of one image: the queries [begin, end).
template <typename Kind, typename T>
void attend(
    const PackedAttention& a, int64_t image, int64_t head, int64_t begin, int64_t end, const AttentionScratch& s) {
  using Number = typename Kind::Number;
  constexpr bool reads_in_place = sizeof(T) == sizeof(Number);
  const int64_t channels = a.heads * a.head_dim, stride = 3 * channels;
  const T* q = static_cast<const T*>(a.qkv) + image * a.tokens * stride + head * a.head_dim;
  Kind::pack_keys(q + channels, stride, a.tokens, a.head_dim, s.keys);
  Kind::pack_values(q + 2 * channels, stride, a.tokens, a.head_dim, s.values);
  const float scale_log2 = float(a.scale * 1.4426950408889634);
  const int64_t tiles = divide_up(end - begin, tile_rows);
  Number* weights = reinterpret_cast<Number*>(s.weights);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = begin + t * (end - begin) / tiles, last = begin + (t + 1) * (end - begin) / tiles;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(q + row * stride);
    int64_t words_stride = stride / Kind::per_word;
    if constexpr (!reads_in_place) {
      pack_rows(q + row * stride, stride, last - row, a.head_dim, 1.0f, reinterpret_cast<float*>(s.queries));
      words = s.queries;
      words_stride = s.channels;
    }
    const int64_t rows = last - row;
    multiply_columns<typename Kind::Dot>(
        rows, words, words_stride, s.keys, s.columns, a.head_dim / Kind::per_word, s.logits);
    float factors[tile_rows];
    for (int64_t r = 0; r < rows; ++r) {
      factors[r] = exponentiate<Kind>(s.logits + r * s.columns, a.tokens, scale_log2, weights + r * s.columns);
    }
    multiply_columns<typename Kind::Dot>(
        rows,
        reinterpret_cast<uint32_t*>(weights),
        s.columns / Kind::per_word,
        s.values,
        s.channels,
        divide_up(a.tokens, Kind::per_word),
        s.out);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t target = (image * a.tokens + row + r) * channels + head * a.head_dim;
      for_each_vector<float>(a.head_dim, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        const Vector<float> v = load(s.out + r * s.channels + d) * factors[r];
        if (a.out_type == Type::bfloat16) {
          store_result<Store::bfloat16>(static_cast<BFloat16*>(a.out) + target, d, v, count);
        } else {
          store_up_to<float>(static_cast<float*>(a.out) + target + d, v, count);
        }
      });
    }
  }
}

template <typename Kind, typename T>
void attention_rows(const PackedAttention& a, const HeadRows& part, char* workspace) {
  Arena arena(workspace);
  const AttentionScratch scratch(arena, a);
  for (int64_t row = part.row_begin; row < part.row_end;) {
    const int64_t image = row / a.tokens, first = row % a.tokens, rest = part.row_end - image * a.tokens;
    const int64_t last = rest < a.tokens ? rest : a.tokens;
    for (int64_t head = part.head_begin; head < part.head_end; ++head) {
      attend<Kind, T>(a, image, head, first, last, scratch);
    }
    row = image * a.tokens + last;
  }
}

void packed_attention(const PackedAttention& a, const HeadRows& part, char* workspace) {
  if (a.qkv_type == Type::float32) return attention_rows<FloatAttention, float>(a, part, workspace);
#if defined(__AVX512BF16__)
  if (a.head_dim % 2 == 0) return attention_rows<BFloat16Attention, BFloat16>(a, part, workspace);
#endif
  attention_rows<FloatAttention, BFloat16>(a, part, workspace);
}

template <typename T>
VITFAST_INLINE void normalize_heads(T* row, const QkNorm& a, const Norm& norm, float* buffer) {
  for (int64_t head = 0; head < a.heads; ++head) {
    T* x = row + head * a.head_dim;
    const float sum = widen_row<Precision::float32>(x, a.head_dim, buffer);
    normalize_row(buffer, a.head_dim, sum, norm);
    for_each_vector<float>(a.head_dim, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      store_up_to<float>(x + i, load(buffer + i), count);
    });
  }
}

template <typename T>
void qk_norm_rows(const QkNorm& a, int64_t begin, int64_t end) {
  const Scratch<float> buffer(a.head_dim + width<float>);
  const int64_t channels = a.heads * a.head_dim;
  for (int64_t r = begin; r < end; ++r) {
    T* row = static_cast<T*>(a.qkv) + r * 3 * channels;
    normalize_heads(row, a, a.q, buffer.data);
    normalize_heads(row + channels, a, a.k, buffer.data);
  }
}

void qk_norm(const QkNorm& a, int64_t begin, int64_t end) {
  a.qkv_type == Type::float32 ? qk_norm_rows<float>(a, begin, end) : qk_norm_rows<BFloat16>(a, begin, end);
}

}  // namespace vitfast::VITFAST_ISA
