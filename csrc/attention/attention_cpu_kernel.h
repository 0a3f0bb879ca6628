// Attention on the CPU, forward and backward.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// --- forward ---
//
// A task packs a head's keys (transposed) and values once and processes blocks of query rows: logits = (scale q) kᵀ +
// bias, a softmax over whole rows, probabilities times v. The logits of a block stay in the cache.

constexpr int64_t attention_block_rows = 8 * max_tile_rows;

template <typename T>
VITFAST_INLINE T* token_rows(const HeadsView& view, int64_t batch, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + head * view.head_stride;
}

template <typename T, typename C>
VITFAST_INLINE void unpack_rows(const C* packed, int64_t count, int64_t size, C factor, T* rows, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    for_each_vector<C>(size, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      store_up_to<C>(rows + i * stride + j, load(packed + i * padded<C>(size) + j) * factor, n);
    });
  }
}

// Adds a row of the bias to a row of logits.
template <typename C, typename T>
VITFAST_INLINE void add_bias(C* logits, const T* bias, int64_t tokens) {
  for_each_vector<C>(tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    store(logits + j, load(logits + j) + load_up_to<C>(bias + j, n));
  });
}

template <typename C>
struct RowStatistics {
  C maximum;
  C sum;
};

// Replaces a row of logits by exp(logit - maximum).
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
  const C maximum = largest == -C(__builtin_inf()) ? C(0) : largest;  // masked row: all exponentials are zero
  Vector<C> sums{};
  for (int64_t j = 0; j < columns; j += width<C>) {
    const Vector<C> e = exp(load(row + j) - maximum);
    store(row + j, e);
    sums += e;
  }
  return {maximum, sum_across<C>(sums)};
}

// Replaces a row of logits by unnormalized weights and returns the normalization factor.
template <typename T, typename C>
VITFAST_INLINE C softmax_row(const AttentionForward& a, int64_t head_index, int64_t row, C* values) {
  const RowStatistics<C> statistics = exponentiate_row(values, a.tokens);
  // masked row: the output is zero, and with an lse of zero the backward recomputes zero probabilities
  const bool masked = statistics.sum == C(0);
  static_cast<C*>(a.lse)[head_index * a.tokens + row] =
      masked ? C(0) : statistics.maximum + C(::log(double(statistics.sum)));
  return masked ? C(0) : C(1) / statistics.sum;
}

// Also blends the exponentials with the positional probabilities, scaled by the sum of the exponentials.
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
      T* const target = out_rows + (row + i) * a.out.token_stride;
      unpack_rows(out.data + i * v_columns, 1, head_dim, factors[i], target, a.out.token_stride);
    }
  }
}

// `Arguments`: AttentionForward or GatedPositionalAttention.
template <typename Arguments>
void attention_forward(const Arguments& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    for (int64_t task = begin; task < end; ++task)
      attention_forward_task<decltype(stored), decltype(computed)>(a, task);
  });
}

// --- backward ---
//
// A task processes one head of one image, or of all images if the bias gradient is summed over them. With
// P = exp(logits - lse) and D_i = Σ_d grad_out_id out_id:
//   grad_v = Pᵀ grad_out,  dS = P ∘ (grad_out vᵀ - D) + grad_logits,  grad_q = scale dS k,  grad_k = scale dSᵀ q,
//   grad_bias = dS.

// Matrices of a head in the computing type, allocated once per range of tasks.
template <typename C>
struct BackwardScratch {
  explicit BackwardScratch(const AttentionBackward& a)
      : columns(padded<C>(a.tokens)),
        channels(padded<C>(a.head_dim)),
        k_transposed(a.head_dim * columns),
        v_transposed(a.head_dim * columns),
        k(a.tokens * channels),
        grad_k(a.tokens * channels),
        grad_v(a.tokens * channels),
        q(attention_block_rows * channels),
        grad_out(attention_block_rows * channels),
        grad_q(attention_block_rows * channels),
        probabilities(attention_block_rows * columns),
        grad_logits(attention_block_rows * columns) {}
  const int64_t columns, channels;
  const Scratch<C> k_transposed, v_transposed;  // [D, N]
  const Scratch<C> k, grad_k, grad_v;           // [N, D]
  const Scratch<C> q, grad_out, grad_q;         // [block, D]
  const Scratch<C> probabilities, grad_logits;  // [block, N]
};

template <typename T, typename C>
VITFAST_INLINE C dot(const C* packed, const T* row, int64_t size) {
  Vector<C> sums{};
  for_each_vector<C>(size, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    sums += load(packed + j) * load_up_to<C>(row + j, n);
  });
  return sum_across<C>(sums);
}

// In: rows of the logits and of grad_out vᵀ. Out: the rows of P and of dS, in place.
template <typename T, typename C>
VITFAST_INLINE void differentiate_row(
    C* probabilities, C* grad, const T* bias, const T* grad_logits, C lse, C output_dot, int64_t tokens) {
  if (bias != nullptr) add_bias(probabilities, bias, tokens);
  for_each_vector<C>(tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    const Vector<C> p = exp(load(probabilities + j) - lse);
    Vector<C> ds = p * (load(grad + j) - output_dot);
    if (grad_logits != nullptr) ds += load_up_to<C>(grad_logits + j, n);
    store(probabilities + j, p);
    store(grad + j, ds);
  });
}

// bias_sum: [N, padded N] to add dS to, or null; grad_bias: [N, N] to write dS to, or null.
template <typename T, typename C>
void attention_backward_head(
    const AttentionBackward& a, const BackwardScratch<C>& s, int64_t batch, int64_t head, C* bias_sum, T* grad_bias) {
  const int64_t tokens = a.tokens, head_dim = a.head_dim, columns = s.columns, channels = s.channels;
  const int64_t head_index = batch * a.heads + head;
  const T* k = token_rows<const T>(a.k, batch, head);
  pack_transposed(k, a.k.token_stride, tokens, head_dim, s.k_transposed.data);
  pack_transposed(token_rows<const T>(a.v, batch, head), a.v.token_stride, tokens, head_dim, s.v_transposed.data);
  pack_rows(k, a.k.token_stride, tokens, head_dim, C(1), s.k.data);
  std::memset(s.grad_k.data, 0, size_t(tokens * channels) * sizeof(C));
  std::memset(s.grad_v.data, 0, size_t(tokens * channels) * sizeof(C));

  const T* q_rows = token_rows<const T>(a.q, batch, head);
  const T* out_rows = token_rows<const T>(a.out, batch, head);
  const T* grad_out_rows = token_rows<const T>(a.grad_out, batch, head);
  const T* bias = a.bias == nullptr
                      ? nullptr
                      : static_cast<const T*>(a.bias) + batch * a.bias_batch_stride + head * tokens * tokens;
  const T* grad_logits =
      a.grad_logits == nullptr ? nullptr : static_cast<const T*>(a.grad_logits) + head_index * tokens * tokens;
  const C* lse = static_cast<const C*>(a.lse) + head_index * tokens;

  for (int64_t row = 0; row < tokens; row += attention_block_rows) {
    const int64_t rows = tokens - row < attention_block_rows ? tokens - row : attention_block_rows;
    pack_rows(q_rows + row * a.q.token_stride, a.q.token_stride, rows, head_dim, C(a.scale), s.q.data);
    pack_rows(
        grad_out_rows + row * a.grad_out.token_stride, a.grad_out.token_stride, rows, head_dim, C(1), s.grad_out.data);
    C* p = s.probabilities.data;
    C* ds = s.grad_logits.data;
    multiply<C>({head_dim, s.q.data, channels, 1, s.k_transposed.data, columns, p, columns, false}, rows, columns);
    multiply<C>(
        {head_dim, s.grad_out.data, channels, 1, s.v_transposed.data, columns, ds, columns, false}, rows, columns);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = row + i;
      const C output_dot = dot(s.grad_out.data + i * channels, out_rows + r * a.out.token_stride, head_dim);
      differentiate_row<T, C>(
          p + i * columns,
          ds + i * columns,
          bias == nullptr ? nullptr : bias + r * tokens,
          grad_logits == nullptr ? nullptr : grad_logits + r * tokens,
          lse[r],
          output_dot,
          tokens);
      for_each_vector<C>(tokens, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const Vector<C> v = load(ds + i * columns + j);
        if (bias_sum != nullptr) store(bias_sum + r * columns + j, load(bias_sum + r * columns + j) + v);
        if (grad_bias != nullptr) store_up_to<C>(grad_bias + r * tokens + j, v, n);
      });
    }
    multiply<C>({rows, p, 1, columns, s.grad_out.data, channels, s.grad_v.data, channels, true}, tokens, channels);
    multiply<C>({rows, ds, 1, columns, s.q.data, channels, s.grad_k.data, channels, true}, tokens, channels);
    multiply<C>({tokens, ds, columns, 1, s.k.data, channels, s.grad_q.data, channels, false}, rows, channels);
    T* grad_q = token_rows<T>(a.grad_q, batch, head) + row * a.grad_q.token_stride;
    unpack_rows(s.grad_q.data, rows, head_dim, C(a.scale), grad_q, a.grad_q.token_stride);
  }
  // q was packed with the scale, which grad_k therefore includes
  unpack_rows(s.grad_k.data, tokens, head_dim, C(1), token_rows<T>(a.grad_k, batch, head), a.grad_k.token_stride);
  unpack_rows(s.grad_v.data, tokens, head_dim, C(1), token_rows<T>(a.grad_v, batch, head), a.grad_v.token_stride);
}

template <typename T, typename C>
void attention_backward_tasks(const AttentionBackward& a, int64_t begin, int64_t end) {
  const BackwardScratch<C> scratch(a);
  const int64_t bias_size = a.tokens * a.tokens;
  if (a.grad_bias == nullptr || a.bias_batch_stride != 0) {
    for (int64_t task = begin; task < end; ++task) {
      T* grad_bias = a.grad_bias == nullptr ? nullptr : static_cast<T*>(a.grad_bias) + task * bias_size;
      attention_backward_head<T, C>(a, scratch, task / a.heads, task % a.heads, nullptr, grad_bias);
    }
    return;
  }
  const Scratch<C> bias_sum(a.tokens * scratch.columns);
  for (int64_t head = begin; head < end; ++head) {
    std::memset(bias_sum.data, 0, size_t(a.tokens * scratch.columns) * sizeof(C));
    for (int64_t batch = 0; batch < a.batch; ++batch) {
      attention_backward_head<T, C>(a, scratch, batch, head, bias_sum.data, nullptr);
    }
    unpack_rows(bias_sum.data, a.tokens, a.tokens, C(1), static_cast<T*>(a.grad_bias) + head * bias_size, a.tokens);
  }
}

void attention_backward(const AttentionBackward& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    attention_backward_tasks<decltype(stored), decltype(computed)>(a, begin, end);
  });
}

}  // namespace vitfast::VITFAST_ISA
