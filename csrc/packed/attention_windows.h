// Attention within windows of tokens, and cosine attention: a head's q, k and v are gathered to contiguous memory,
// where attention reads them as one image with one head.

#pragma once

#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

inline int64_t element_bytes(Type type) {
  return type == Type::bfloat16 ? 2 : 4;
}

struct GatheredHead {
  GatheredHead(Arena& arena, const PackedAttention& a)
      : qkv(arena.take<char>(3 * a.tokens * a.head_dim * element_bytes(a.qkv_type))),
        out(arena.take<char>(a.tokens * a.head_dim * element_bytes(a.out_type))),
        terms(
            a.query_bias.rows == nullptr ? nullptr
                                         : arena.take<float>(a.tokens * (a.query_bias.height + a.query_bias.width))) {}
  char* qkv;     // [tokens, 3, D]
  char* out;     // [tokens, D]
  float* terms;  // [tokens, height + width] or null
};

// Index in the image of a token of a window; -1: padding.
VITFAST_INLINE int64_t token_at(const PackedAttention& a, int64_t window, int64_t i) {
  return a.windows.tokens == nullptr ? i : a.windows.tokens[window % a.windows.count * a.tokens + i];
}

// Number of tokens of a window that attend.
VITFAST_INLINE int64_t length_of(const PackedAttention& a, int64_t window) {
  return a.windows.lengths == nullptr ? a.tokens : a.windows.lengths[window % a.windows.count];
}

template <typename T>
void gather_head_of(const PackedAttention& a, int64_t window, int64_t head, T* out) {
  const int64_t image = window / a.windows.count, size = a.head_dim, channels = a.heads * size;
  const T* qkv = static_cast<const T*>(a.qkv) + image * a.image_tokens() * 3 * channels + head * size;
  for (int64_t i = 0; i < length_of(a, window); ++i) {
    const int64_t token = token_at(a, window, i);
    for (int64_t part = 0; part < 3; ++part, out += size) {
      if (token >= 0) {
        std::memcpy(out, qkv + (token * 3 + part) * channels, size_t(size) * sizeof(T));
      } else if (a.windows.padding != nullptr) {
        const float* padding = a.windows.padding + part * channels + head * size;
        for_each_vector<float>(size, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
          store_up_to<float>(out + d, load_up_to<float>(padding + d, n), n);
        });
      } else {
        std::memset(out, 0, size_t(size) * sizeof(T));
      }
      if (a.cosine != nullptr && part < 2) divide_by_norm(out, size, part == 0 ? a.cosine[head] : 1.0f);
    }
  }
}

// `first`: the part of a table's first row that is read; the table ends at `end`.
struct TableRows {
  const float* first;
  int64_t stride;
  const float* end;
};

VITFAST_INLINE float widened(float x) {
  return x;
}
VITFAST_INLINE float widened(BFloat16 x) {
  return bit_cast<float>(uint32_t(x.bits) << 16);
}

// Of each of `count` queries x: out[size] = the sum over c of x[c] table[c, 0 .. size).
template <int count, typename T>
VITFAST_INLINE void sum_of_rows(
    const T* x, int64_t x_stride, int64_t channels, const TableRows& table, int64_t size, float* out, int64_t stride) {
  for_each_vector<float>(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    Vector<float> sums[count] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const float* const p = table.first + c * table.stride + i;
      // whole vectors where the table has them: the numbers behind the row are not stored
      const Vector<float> row = table.end - p >= width<float> ? load(p) : load_up_to<float>(p, n);
      for (int q = 0; q < count; ++q) {
        sums[q] = fused_multiply_add(broadcast(widened(x[q * x_stride + c])), row, sums[q]);
      }
    }
    for (int q = 0; q < count; ++q) store_up_to<float>(out + q * stride + i, sums[q], n);
  });
}

// The bias of the gathered queries [begin, end) on each row and column of keys. Queries in one row of the grid share
// the part of the table that they read, as those in one column do.
template <typename T>
void find_query_terms(const PackedAttention& a, const T* qkv, Range queries, float* terms) {
  const auto [rows, columns, height, width] = a.query_bias;
  const int64_t size = a.head_dim, of_query = height + width;
  // of the queries first, first + step, ... before `last`
  const auto find = [&](int64_t first, int64_t step, int64_t last, const TableRows& table, int64_t side, float* out) {
    for (int64_t i = first; i < last;) {
      const int64_t left = ceil_div(last - i, step);
      with_constant<6, 5, 4, 3, 2, 1>(left < 6 ? left : 6, [&](auto count) {
        sum_of_rows<count>(qkv + i * 3 * size, step * 3 * size, size, table, side, out + i * of_query, step * of_query);
        i += count * step;
      });
    }
  };
  const int64_t row_stride = 2 * height - 1, column_stride = 2 * width - 1;
  for (int64_t y = queries.begin / width; y * width < queries.end; ++y) {
    const int64_t first = y * width < queries.begin ? queries.begin : y * width;
    const int64_t last = (y + 1) * width < queries.end ? (y + 1) * width : queries.end;
    find(first, 1, last, {rows + height - 1 - y, row_stride, rows + size * row_stride}, height, terms);
  }
  for (int64_t x = 0; x < width; ++x) {
    const int64_t first = queries.begin + (x - queries.begin % width + width) % width;
    const TableRows table{columns + width - 1 - x, column_stride, columns + size * column_stride};
    find(first, width, queries.end, table, width, terms + height);
  }
}

// Gathers a head; the queries [begin, end) will be computed.
inline void gather_head(
    const PackedAttention& a, int64_t window, int64_t head, Range queries, const GatheredHead& buffers) {
  const auto gather = [&](auto* qkv) {
    gather_head_of(a, window, head, qkv);
    if (buffers.terms != nullptr) find_query_terms(a, qkv, queries, buffers.terms);
  };
  if (a.qkv_type == Type::float32) return gather(reinterpret_cast<float*>(buffers.qkv));
  gather(reinterpret_cast<BFloat16*>(buffers.qkv));
}

// The same attention of what is gathered.
inline PackedAttention without_gathering(PackedAttention a) {
  a.windows = {};
  a.cosine = nullptr;
  a.query_bias.rows = a.query_bias.columns = nullptr;
  return a;
}

// The attention of one gathered head.
inline PackedAttention gathered(PackedAttention a, int64_t window, int64_t head, const GatheredHead& buffers) {
  const int64_t pattern = a.windows.patterns == nullptr ? 0 : a.windows.patterns[window % a.windows.count];
  if (a.bias != nullptr) a.bias += pattern * a.bias_pattern_stride + head * a.bias_head_stride;
  a.qkv = buffers.qkv;
  a.out = buffers.out;
  a.query_terms = buffers.terms;
  a.tokens = length_of(a, window);
  a.heads = 1;
  return without_gathering(a);
}

// Copies the results of some tokens of a window to their places in the image; those of padding are dropped.
inline void scatter_head(
    const PackedAttention& a, int64_t window, int64_t head, Range tokens, const GatheredHead& buffers) {
  const int64_t image = window / a.windows.count, bytes = a.head_dim * element_bytes(a.out_type);
  char* out = static_cast<char*>(a.out) + (image * a.image_tokens() * a.heads + head) * bytes;
  for (int64_t i = tokens.begin; i < tokens.end; ++i) {
    const int64_t token = token_at(a, window, i);
    if (token >= 0) std::memcpy(out + token * a.heads * bytes, buffers.out + i * bytes, size_t(bytes));
  }
}

}  // namespace vitfast::VITFAST_ISA
