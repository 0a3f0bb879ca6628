// The two GEMMs of attention for a tile of queries: queries times keys, and softmax weights times values.
//
// K and V are packed as panels of at most `tile_vectors` vectors of columns (tokens or channels), in the order in which
// a tile reads them. A panel has one row of words for each word of its depth. A panel of keys starts with one more row,
// the initial values of its sums: zero, and minus infinity after the last token.

#pragma once

#include <type_traits>

#include "csrc/cpu/matrix.h"
#include "csrc/packed/attention_softmax.h"
#include "csrc/packed/gemm_microkernel.h"

namespace vitfast::VITFAST_ISA {

// Panels of nearly equal width, in vectors.
struct ColumnPanels {
  explicit ColumnPanels(int64_t columns)
      : vectors(ceil_div(columns, width<float>)), count(ceil_div(vectors, tile_vectors)) {}
  int64_t begin(int64_t panel) const { return panel * vectors / count; }
  int64_t vectors, count;
};

// Stores the logits and updates the maximum of each row and lane.
struct LogitSink {
  static constexpr bool has_start = true;
  float* logits;
  int64_t stride;
  float* maxima;            // [rows, width]
  const float* row_scales;  // [rows], of integer sums only

  template <int vectors>
  VITFAST_INLINE void finish(int r, int64_t column, const Vector<float>* sums) const {
    Vector<float> maximum = load(maxima + r * width<float>);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      store(logits + r * stride + column + v * width<float>, sums[v]);
      maximum = larger(sums[v], maximum);
    }
    store(maxima + r * width<float>, maximum);
  }
};

// Scales the product with the values by each row's factor and stores whole vectors.
struct ResultSink {
  static constexpr bool has_start = false;
  Type type;  // float32 or bfloat16
  void* out;
  int64_t stride;
  const float* factors;  // [rows]

  template <int vectors>
  VITFAST_INLINE void finish(int r, int64_t column, const Vector<float>* sums) const {
    const float factor = factors[r];
    const int64_t place = r * stride + column;
    if (type == Type::bfloat16) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        store_bfloat16(static_cast<BFloat16*>(out) + place + v * width<float>, sums[v] * factor);
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) store(static_cast<float*>(out) + place + v * width<float>, sums[v] * factor);
    }
  }
};

// start + a[rows, depth] · b[depth, vectors], in words; `start`: a row before b, or zero.
template <typename Dot, int rows, int vectors, typename Sink>
void multiply_panel(
    const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t depth, int64_t column, const Sink sink) {
  constexpr int64_t w = width<float>;
  using Sum = typename Dot::Sum;
  const uint32_t* const starts = b;
  Sum sums[rows][vectors];
  // explicit unrolling: GCC would emit a memset and a memcpy and keep the sums in memory
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    Sum start{};
    if constexpr (Sink::has_start && !Dot::is_integer) start = bit_cast<Sum>(load_integers(starts + v * w));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r][v] = start;
  }
  if constexpr (Sink::has_start) b += vectors * w;
  Sum before[rows][vectors];  // sums of earlier float32 runs
  const uint32_t* const end = a + depth;
  for (bool is_first = true;; is_first = false) {
    const uint32_t* const stop = std::is_same_v<Dot, FloatDot> && end - a > max_run ? a + max_run : end;
#pragma GCC unroll tile_unroll
    for (; a < stop; ++a) {
      Integers<float> b_row[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) b_row[v] = load_integers(b + v * w);
      b += vectors * w;
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Integers<float> a_word = broadcast_word(a + r * a_stride);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) Dot::add(sums[r][v], a_word, b_row[v]);
      }
    }
    if (!is_first) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sums[r][v] += before[r][v];
      }
    }
    if (stop == end) break;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        before[r][v] = sums[r][v];
        sums[r][v] = Sum{};
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    if constexpr (Dot::is_integer) {
      Vector<float> values[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        values[v] = __builtin_convertvector(sums[r][v], Vector<float>);
        if constexpr (Sink::has_start) {
          values[v] = values[v] * sink.row_scales[r] + bit_cast<Vector<float>>(load_integers(starts + v * w));
        }
      }
      sink.template finish<vectors>(r, column, values);
    } else {
      sink.template finish<vectors>(r, column, sums[r]);
    }
  }
}

// The same for all panels.
template <typename Dot, int rows, typename Sink>
VITFAST_INLINE void multiply_panels(
    const uint32_t* a,
    int64_t a_stride,
    const uint32_t* b,
    const ColumnPanels& panels,
    int64_t depth,
    const Sink& sink) {
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), vectors = panels.begin(panel + 1) - first, column = first * width<float>;
    with_constant<4, 3, 2, 1>(vectors, [&](auto count) {
      if constexpr (count <= tile_vectors) multiply_panel<Dot, rows, int(count)>(a, a_stride, b, depth, column, sink);
    });
    b += (depth + (Sink::has_start ? 1 : 0)) * vectors * width<float>;
  }
}

// Panels of keys from rows of numbers that are words, or become words when widened.
template <typename T>
void pack_key_panels(const T* k, int64_t stride, int64_t tokens, int64_t depth, uint32_t* packed) {
  constexpr int64_t w = width<float>;
  const ColumnPanels panels(tokens);
  float* words = reinterpret_cast<float*>(packed);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), columns = (panels.begin(panel + 1) - first) * w;
    for (int64_t i = 0; i < columns; ++i) words[i] = first * w + i < tokens ? 0.0f : -__builtin_inff();
    words += columns;
    for (int64_t i = 0; i < columns; i += w) {
      const int64_t token = first * w + i;
      transpose_vector(k + token * stride, stride, tokens - token, depth, words + i, columns);
    }
    words += depth * columns;
  }
}

// Panels of values; load_words(row of words, first channel, count) returns a vector of words.
template <typename Load>
VITFAST_INLINE void pack_value_panels(int64_t depth, int64_t channels, uint32_t* words, const Load& load_words) {
  constexpr int64_t w = width<float>;
  const ColumnPanels panels(channels);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel) * w, last = panels.begin(panel + 1) * w;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t d = first; d < last; d += w) {
        const Integers<float> v = load_words(k, d, channels - d < w ? channels - d : w);
        std::memcpy(words, &v, sizeof(v));
        words += w;
      }
    }
  }
}

}  // namespace vitfast::VITFAST_ISA
