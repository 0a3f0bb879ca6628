// LayerNorm of each head's q and k, in place, before attention.

#pragma once

#include "csrc/packed/operand.h"

namespace vitfast::VITFAST_ISA {

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
