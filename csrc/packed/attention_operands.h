// Where attention reads a head's queries, keys and values: in qkv, or queries and keys rotated by their positions.

#pragma once

#include "csrc/packed/attention_windows.h"

namespace vitfast::VITFAST_ISA {

// Rows of one head of one image.
template <typename T>
struct HeadOperands {
  const T* q;
  const T* k;
  int64_t stride;  // of q and k
  const T* v;
  int64_t v_stride;
};

// Rotated queries and keys of a head; null without a rotation.
inline char* take_rotated(Arena& arena, const PackedAttention& a) {
  if (a.rotary.tables == nullptr) return nullptr;
  return arena.take<char>(2 * a.tokens * a.head_dim * element_bytes(a.qkv_type));
}

VITFAST_INLINE Vector<float> swap_neighbours(Vector<float> v) {
  typedef uint64_t Pairs __attribute__((vector_size(VITFAST_VECTOR_BYTES)));
  const Pairs pairs = bit_cast<Pairs>(v);
  return bit_cast<Vector<float>>(pairs << 32 | pairs >> 32);
}

// `table`: cosines and sines, [2, size].
template <typename T>
VITFAST_INLINE void rotate_row(const T* x, const float* table, int64_t size, bool is_interleaved, T* out) {
  const float *cosines = table, *sines = table + size;
  if (is_interleaved) {
    return for_each_vector<float>(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      const Vector<float> v = load_up_to<float>(x + i, n);
      const Vector<float> turned = swap_neighbours(v) * load_up_to<float>(sines + i, n);
      store_up_to<float>(out + i, v * load_up_to<float>(cosines + i, n) + turned, n);
    });
  }
  const int64_t half = size / 2;
  for_each_vector<float>(half, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const int64_t j = half + i;
    const Vector<float> first = load_up_to<float>(x + i, n), second = load_up_to<float>(x + j, n);
    const Vector<float> low = first * load_up_to<float>(cosines + i, n) + second * load_up_to<float>(sines + i, n);
    const Vector<float> high = second * load_up_to<float>(cosines + j, n) + first * load_up_to<float>(sines + j, n);
    store_up_to<float>(out + i, low, n);
    store_up_to<float>(out + j, high, n);
  });
}

// The rows [begin, end) of q or k of a head; out: all tokens.
template <typename T>
void rotate_rows(
    const PackedAttention& a, int64_t head, const T* x, int64_t stride, int64_t begin, int64_t end, T* out) {
  const int64_t size = a.head_dim, first = a.tokens - a.rotary.tokens;
  const float* tables = a.rotary.tables + (a.rotary.is_shared ? 0 : head * a.rotary.tokens * 2 * size);
  for (int64_t row = begin; row < end; ++row) {
    if (row < first) {
      std::memcpy(out + row * size, x + row * stride, size_t(size) * sizeof(T));
    } else {
      rotate_row(x + row * stride, tables + (row - first) * 2 * size, size, a.rotary.is_interleaved, out + row * size);
    }
  }
}

// The operands for the queries [begin, end); `rotated`: from take_rotated.
template <typename T>
HeadOperands<T> head_operands(
    const PackedAttention& a, int64_t image, int64_t head, int64_t begin, int64_t end, char* rotated) {
  const int64_t channels = a.heads * a.head_dim, stride = 3 * channels;
  const T* q = static_cast<const T*>(a.qkv) + image * a.tokens * stride + head * a.head_dim;
  if (rotated == nullptr) return {q, q + channels, stride, q + 2 * channels, stride};
  T* const queries = reinterpret_cast<T*>(rotated);
  T* const keys = queries + a.tokens * a.head_dim;
  rotate_rows(a, head, q, stride, begin, end, queries);
  rotate_rows(a, head, q + channels, stride, 0, a.tokens, keys);
  return {queries, keys, a.head_dim, q + 2 * channels, stride};
}

}  // namespace vitfast::VITFAST_ISA
