// Token merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023), one image after the other:
// similarities of all pairs by a GEMM, the most similar ones by selection, then weighted means.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// The tokens after the prefix belong alternately to two sets, by their index among all tokens.
struct TokenSet {
  int64_t start, count;
  int64_t token(int64_t i) const { return start + 2 * i; }
};

inline TokenSet token_set(const MergeTokens& a, int64_t parity) {
  const int64_t start = a.prefix + (a.prefix + parity) % 2;
  return {start, start < a.tokens ? (a.tokens - start + 1) / 2 : 0};
}

// Writes the mean of the heads' keys of a set, each divided by its norm: [count, head_dim].
template <typename T>
void normalize_keys(const MergeTokens& a, const T* keys, const TokenSet& set, float* out) {
  for (int64_t i = 0; i < set.count; ++i) {
    const T* of_token = keys + set.token(i) * a.key_row_stride;
    float* row = out + i * a.head_dim;
    for_each_vector<float>(a.head_dim, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vector<float> sum{};
      for (int64_t h = 0; h < a.heads; ++h) sum += load_up_to<float>(of_token + h * a.head_dim + d, n);
      store_up_to<float>(row + d, sum, n);
    });
    divide_by_norm(row, a.head_dim, 1);
  }
}

// The largest of `count` numbers, of equal ones the first; the rest of the last vector is smaller.
inline int64_t find_largest(const float* row, int64_t count) {
  Vector<float> largest = load(row);
  for (int64_t i = width<float>; i < count; i += width<float>) {
    const Vector<float> v = load(row + i);
    largest = v > largest ? v : largest;
  }
  const float value = max_across<float>(largest);
  int64_t i = 0;
  while (i + 1 < count && row[i] != value) ++i;  // the last one if there are NaN
  return i;
}

// Marks the `count` most similar pairs; a NaN is not similar.
inline void choose_pairs(const float* similarity, int64_t pairs, int64_t count, bool* is_merged) {
  for (int64_t i = 0; i < pairs; ++i) is_merged[i] = false;
  for (int64_t n = 0; n < count; ++n) {
    int64_t best = -1;
    for (int64_t i = 0; i < pairs; ++i) {
      if (!is_merged[i] && (best < 0 || similarity[i] > similarity[best])) best = i;
    }
    is_merged[best] = true;
  }
}

// Writes the index of each token after merging.
template <typename T>
void match_tokens(const MergeTokens& a, const T* keys, int64_t* places) {
  const TokenSet first = token_set(a, 0), second = token_set(a, 1);
  const int64_t columns = padded<float>(second.count);
  const Scratch<float> of_first(first.count * a.head_dim), of_second(second.count * a.head_dim),
      transposed(a.head_dim * columns), products(first.count * columns), similarity(first.count);
  const Scratch<bool> is_merged(first.count);
  normalize_keys(a, keys, first, of_first.data);
  normalize_keys(a, keys, second, of_second.data);
  pack_transposed(of_second.data, a.head_dim, second.count, a.head_dim, transposed.data);
  multiply<float>(
      {a.head_dim, of_first.data, a.head_dim, 1, transposed.data, columns, products.data, columns, false},
      first.count,
      columns);
  const int64_t first_of_second = a.prefix + first.count - a.count;
  for (int64_t i = 0; i < first.count; ++i) {
    float* row = products.data + i * columns;
    for (int64_t j = second.count; j < columns; ++j) row[j] = -__builtin_inff();
    const int64_t partner = find_largest(row, second.count);
    similarity.data[i] = row[partner];
    places[first.token(i)] = first_of_second + partner;
  }
  choose_pairs(similarity.data, first.count, a.count, is_merged.data);
  for (int64_t i = 0; i < a.prefix; ++i) places[i] = i;
  int64_t place = a.prefix;
  for (int64_t i = 0; i < first.count; ++i) {
    if (!is_merged.data[i]) places[first.token(i)] = place++;
  }
  for (int64_t j = 0; j < second.count; ++j) places[second.token(j)] = first_of_second + j;
}

// Writes the means of the tokens that have one place, weighted by their sizes, and the sums of the sizes.
inline void combine_tokens(
    const MergeTokens& a, const float* x, const float* sizes, const int64_t* places, float* out, float* out_sizes) {
  const auto size_of = [&](int64_t token) { return sizes == nullptr ? 1 : sizes[token]; };
  const int64_t tokens = a.tokens - a.count;
  for (int64_t place = 0; place < tokens; ++place) out_sizes[place] = 0;
  for (int64_t token = 0; token < a.tokens; ++token) out_sizes[places[token]] += size_of(token);
  std::memset(out, 0, size_t(tokens * a.channels) * sizeof(float));
  for (int64_t token = 0; token < a.tokens; ++token) {
    const float share = size_of(token) / out_sizes[places[token]];
    const float* row = x + token * a.channels;
    float* target = out + places[token] * a.channels;
    for_each_vector<float>(a.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      store_up_to<float>(target + c, load_up_to<float>(target + c, n) + load_up_to<float>(row + c, n) * share, n);
    });
  }
}

template <typename T>
void merge_images(const MergeTokens& a, int64_t begin, int64_t end) {
  const int64_t tokens = a.tokens - a.count;
  for (int64_t image = begin; image < end; ++image) {
    int64_t* places = a.places + image * a.tokens;
    match_tokens(a, static_cast<const T*>(a.keys) + image * a.key_image_stride, places);
    const float* sizes = a.sizes == nullptr ? nullptr : a.sizes + image * a.tokens;
    const float* x = a.x + image * a.tokens * a.channels;
    combine_tokens(a, x, sizes, places, a.out + image * tokens * a.channels, a.out_sizes + image * tokens);
  }
}

void merge_tokens(const MergeTokens& a, int64_t begin, int64_t end) {
  if (a.key_type == Type::bfloat16) return merge_images<BFloat16>(a, begin, end);
  merge_images<float>(a, begin, end);
}

}  // namespace vitfast::VITFAST_ISA
