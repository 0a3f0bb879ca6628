// Attention, forward. A task packs a head's keys (transposed) and values once, then takes the queries by blocks of
// rows: logits = (scale q) kᵀ + bias, a softmax over whole rows, probabilities times v. The logits of a block stay in
// the cache.

#pragma once

#include "csrc/cpu/dispatch_type.h"
#include "csrc/cpu/matrix.h"

namespace vitfast::VITFAST_ISA {

constexpr int64_t attention_block_rows = 8 * max_tile_rows;

template <typename T>
VITFAST_INLINE T* token_rows(const HeadsView& view, int64_t batch, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}

// Adds a row of the bias to a row of logits.
template <typename C, typename T>
VITFAST_INLINE void add_bias(C* logits, const T* bias, int64_t tokens) {
  for_each_vector<C>(tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    store(logits + j, load(logits + j) + load_up_to<C>(bias + j, n));
  });
}

// Replaces a row of logits by exp(logit - maximum) and returns the maximum and the sum.
template <typename C>
struct RowStatistics {
  C maximum;
  C sum;
};

template <typename C>
VITFAST_INLINE RowStatistics<C> exponentiate_row(C* row, int64_t tokens) {
  const int64_t columns = padded<C>(tokens);
  for (int64_t j = tokens; j < columns; ++j) row[j] = -C(__builtin_inf());
  Vector<C> maxima = load(row);
  for (int64_t j = width<C>; j < columns; j += width<C>) {
    const Vector<C> v = load(row + j);
    maxima = v > maxima ? v : maxima;
  }
  const C largest = max_across<C>(maxima);
  const C maximum = largest == -C(__builtin_inf()) ? C(0) : largest;  // a masked row: every exponential is zero
  Vector<C> sums{};
  for (int64_t j = 0; j < columns; j += width<C>) {
    const Vector<C> e = exp(load(row + j) - maximum);
    store(row + j, e);
    sums += e;
  }
  return {maximum, sum_across<C>(sums)};
}

// Turns a row of logits into weights that are still to be multiplied by the factor that it returns: exponentials, and
// the inverse of their sum.
template <typename T, typename C>
VITFAST_INLINE C softmax_row(const AttentionForward& a, int64_t head_index, int64_t row, C* values) {
  const RowStatistics<C> statistics = exponentiate_row(values, a.tokens);
  // a masked row attends to nothing: zero, and with this lse the backward finds zero probabilities, too
  const bool masked = statistics.sum == C(0);
  static_cast<C*>(a.lse)[head_index * a.tokens + row] =
      masked ? C(0) : statistics.maximum + C(::log(double(statistics.sum)));
  return masked ? C(0) : C(1) / statistics.sum;
}

// The same, and blends the exponentials with the probabilities by position, which are multiplied by the sum for that.
template <typename T, typename C>
VITFAST_INLINE C softmax_row(const GatedPositionalAttention& a, int64_t head_index, int64_t row, C* values) {
  const C sum = exponentiate_row(values, a.tokens).sum;
  const int64_t head = head_index % a.heads;
  const T* position = static_cast<const T*>(a.position) + head * a.position_head_stride + row * a.position_row_stride;
  const C gate = static_cast<const C*>(a.gate)[head];
  const C content = C(1) - gate, positional = gate * sum;
  for_each_vector<C>(a.tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    store(values + j, load(values + j) * content + load_up_to<C>(position + j, n) * positional);
  });
  return C(1) / sum;
}

template <typename T, typename C, typename Arguments>
void attention_forward_task(const Arguments& a, int64_t task) {
  const int64_t head_index = task / a.row_splits;
  const int64_t split = task % a.row_splits;
  const int64_t batch = head_index / a.heads, head = head_index % a.heads;
  const int64_t tokens = a.tokens, head_dim = a.head_dim;
  const int64_t first_row = split * tokens / a.row_splits, last_row = (split + 1) * tokens / a.row_splits;
  const int64_t columns = padded<C>(tokens), v_columns = padded<C>(head_dim);

  const Scratch<C> k_transposed(head_dim * columns), v(tokens * v_columns), q(attention_block_rows * v_columns),
      probabilities(attention_block_rows * columns), out(attention_block_rows * v_columns);
  pack_transposed(token_rows<const T>(a.k, batch, head), a.k.token_stride, tokens, head_dim, k_transposed.data);
  pack_rows(token_rows<const T>(a.v, batch, head), a.v.token_stride, tokens, head_dim, C(1), v.data);

  const T* q_rows = token_rows<const T>(a.q, batch, head);
  T* out_rows = token_rows<T>(a.out, batch, head);
  const T* bias = a.bias == nullptr
                      ? nullptr
                      : static_cast<const T*>(a.bias) + batch * a.bias_batch_stride + head * tokens * tokens;
  T* logits = a.logits == nullptr ? nullptr : static_cast<T*>(a.logits) + head_index * tokens * tokens;

  for (int64_t row = first_row; row < last_row; row += attention_block_rows) {
    const int64_t rows = last_row - row < attention_block_rows ? last_row - row : attention_block_rows;
    pack_rows(q_rows + row * a.q.token_stride, a.q.token_stride, rows, head_dim, C(a.scale), q.data);
    multiply<C>(
        {head_dim, q.data, v_columns, 1, k_transposed.data, columns, probabilities.data, columns, false},
        rows,
        columns);
    C factors[attention_block_rows];
    for (int64_t i = 0; i < rows; ++i) {
      C* values = probabilities.data + i * columns;
      if (bias != nullptr) add_bias(values, bias + (row + i) * tokens, tokens);
      if (logits != nullptr) {
        for_each_vector<C>(tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          store_up_to<C>(logits + (row + i) * tokens + j, load(values + j), n);
        });
      }
      factors[i] = softmax_row<T>(a, head_index, row + i, values);
    }
    multiply<C>(
        {tokens, probabilities.data, columns, 1, v.data, v_columns, out.data, v_columns, false}, rows, v_columns);
    for (int64_t i = 0; i < rows; ++i) {
      for_each_vector<C>(head_dim, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        store_up_to<C>(
            out_rows + (row + i) * a.out.token_stride + j, load(out.data + i * v_columns + j) * factors[i], n);
      });
    }
  }
}

template <typename Arguments>
void run_attention_forward(const Arguments& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    for (int64_t task = begin; task < end; ++task)
      attention_forward_task<decltype(stored), decltype(computed)>(a, task);
  });
}

void attention_forward(const AttentionForward& a, int64_t begin, int64_t end) {
  run_attention_forward(a, begin, end);
}

void gated_positional_attention(const GatedPositionalAttention& a, int64_t begin, int64_t end) {
  run_attention_forward(a, begin, end);
}

}  // namespace vitfast::VITFAST_ISA
