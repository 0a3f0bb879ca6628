// Performer attention (Choromanski et al., 2021) in float32; vitfast/layers/performer_attention.py has the formula.
//
// Each section of tokens yields sums of its keys' features times its values, relative to the section's maxima. The sums
// of all sections are combined and multiplied with every query. Sections do not depend on the number of threads.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/packed/attention_softmax.h"
#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

struct PerformerScratch {
  PerformerScratch(Arena& arena, const PackedPerformer& a)
      : projection(arena.take<float>(a.dim * a.padded_features())),
        features(arena.take<float>(performer_section * a.padded_features())),
        values(arena.take<float>(performer_section * a.padded_dim())),
        sums(arena.take<float>(a.sums_size())),
        totals(arena.take<float>(performer_section)),
        shifts(arena.take<float>(performer_section)) {}
  float* projection;  // [dim, padded_features]
  float* features;    // [tokens, padded_features]
  float* values;      // [tokens, padded_dim]
  float* sums;        // of an image
  float* totals;      // of each token, as the next
  float* shifts;
};

int64_t performer_workspace(const PackedPerformer& a) {
  return is_extension ? extended.performer_workspace(a) : bytes_of<PerformerScratch>(a);
}

inline void transpose_projection(const PackedPerformer& a, float* transposed) {
  for (int64_t m = 0; m < a.padded_features(); m += width<float>) {
    const float* rows = a.projection + m * a.dim;
    transpose_vector(rows, a.dim, a.features - m, a.dim, transposed + m, a.padded_features());
  }
}

VITFAST_INLINE float half_square(const float* x, int64_t size) {
  Vector<float> squares{};
  for_each_vector<float>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Vector<float> v = load_up_to<float>(x + i, count);
    squares += v * v;
  });
  return sum_lanes(squares) / 2;
}

// Writes one section's maxima, sums of features, and features times values to a.sums.
inline void performer_keys_of(const PackedPerformer& a, int64_t section, const PerformerScratch& s) {
  constexpr int64_t w = width<float>;
  const int64_t image = section / a.sections(), first = section % a.sections() * performer_section;
  const int64_t count = a.tokens - first < performer_section ? a.tokens - first : performer_section;
  const int64_t columns = a.padded_features(), dim = a.padded_dim(), stride = 3 * a.dim;
  const float* keys = a.kqv + (image * a.tokens + first) * stride;
  const PerformerSums sums = a.sums_at(a.sums + section * a.sums_size());
  multiply<float>({a.dim, keys, stride, 1, s.projection, columns, s.features, columns, false}, count, columns);
  for (int64_t t = 0; t < count; ++t) {
    s.shifts[t] = half_square(keys + t * stride, a.dim);
    std::memcpy(s.values + t * dim, keys + t * stride + 2 * a.dim, size_t(a.dim) * sizeof(float));
    std::memset(s.values + t * dim + a.dim, 0, size_t(dim - a.dim) * sizeof(float));
  }
  for (int64_t m = 0; m < columns; m += w) {
    Vector<float> largest = broadcast(-__builtin_inff()), total{};
    for (int64_t t = 0; t < count; ++t) largest = larger(load(s.features + t * columns + m) - s.shifts[t], largest);
    for (int64_t t = 0; t < count; ++t) {
      float* place = s.features + t * columns + m;
      const Vector<float> feature = exp(load(place) - s.shifts[t] - largest);
      store(place, feature);
      total += feature;
    }
    store(sums.maxima + m, largest);
    store(sums.totals + m, total);
  }
  multiply<float>({count, s.features, 1, columns, s.values, dim, sums.products, dim, false}, a.features, dim);
}

// Combines the sums of an image's sections, relative to the image's maxima.
inline void join_sections(const PackedPerformer& a, int64_t image, const PerformerSums& whole) {
  constexpr int64_t w = width<float>;
  const int64_t columns = a.padded_features(), dim = a.padded_dim();
  float* first = a.sums + image * a.sections() * a.sums_size();
  const auto of = [&](int64_t section) { return a.sums_at(first + section * a.sums_size()); };
  std::memset(whole.products, 0, size_t(a.features * dim) * sizeof(float));
  for (int64_t m = 0; m < columns; m += w) {
    Vector<float> largest = broadcast(-__builtin_inff()), total{};
    for (int64_t i = 0; i < a.sections(); ++i) largest = larger(load(of(i).maxima + m), largest);
    for (int64_t i = 0; i < a.sections(); ++i) {
      const PerformerSums part = of(i);
      const Vector<float> factors = exp(load(part.maxima + m) - largest);
      total += factors * load(part.totals + m);
      for (int64_t j = 0; j < w && m + j < a.features; ++j) {
        const float* products = part.products + (m + j) * dim;
        float* target = whole.products + (m + j) * dim;
        for (int64_t d = 0; d < dim; d += w) store(target + d, load(target + d) + factors[j] * load(products + d));
      }
    }
    store(whole.maxima + m, largest);
    store(whole.totals + m, total);
  }
  for (int64_t m = a.features; m < columns; ++m) {  // padding
    whole.maxima[m] = -__builtin_inff();
    whole.totals[m] = 0;
  }
}

// Tokens [begin, begin + count) of the flattened images, all of one image.
inline void performer_queries_of(
    const PackedPerformer& a, int64_t begin, int64_t count, const PerformerSums& sums, const PerformerScratch& s) {
  constexpr int64_t w = width<float>;
  const int64_t columns = a.padded_features(), dim = a.padded_dim(), stride = 3 * a.dim;
  const float* queries = a.kqv + begin * stride + a.dim;
  const float log_epsilon = float(a.log_epsilon);
  multiply<float>({a.dim, queries, stride, 1, s.projection, columns, s.features, columns, false}, count, columns);
  for (int64_t t = 0; t < count; ++t) {
    float* features = s.features + t * columns;
    Vector<float> largest = broadcast(-__builtin_inff()), total{};
    for (int64_t m = 0; m < columns; m += w) largest = larger(load(features + m) + load(sums.maxima + m), largest);
    const float shift = largest_lane(largest);
    for (int64_t m = 0; m < columns; m += w) {
      const Vector<float> feature = exp(load(features + m) + load(sums.maxima + m) - shift);
      store(features + m, feature);
      total += feature * load(sums.totals + m);
    }
    s.totals[t] = sum_lanes(total);
    s.shifts[t] = log_epsilon - (shift - half_square(queries + t * stride, a.dim));
  }
  for (int64_t t = 0; t < count; t += w) {  // performer_section is a multiple of every width
    const Vector<float> shift = load(s.shifts + t);
    const Vector<float> epsilon = shift > 88.0f ? broadcast(__builtin_inff()) : exp(shift);
    store(s.totals + t, 1.0f / (load(s.totals + t) + epsilon));
  }
  multiply<float>({a.features, s.features, columns, 1, sums.products, dim, s.values, dim, false}, count, dim);
  for (int64_t t = 0; t < count; ++t) {
    const float factor = s.totals[t];
    for_each_vector<float>(a.dim, [&](int64_t d, int64_t size) __attribute__((always_inline)) {
      store_up_to<float>(a.out + (begin + t) * a.dim + d, load(s.values + t * dim + d) * factor, size);
    });
  }
}

void performer_keys(const PackedPerformer& a, Range sections, char* workspace) {
  if (is_extension) return extended.performer_keys(a, sections, workspace);
  Arena arena(workspace);
  const PerformerScratch scratch(arena, a);
  transpose_projection(a, scratch.projection);
  for (int64_t section = sections.begin; section < sections.end; ++section) performer_keys_of(a, section, scratch);
}

void performer_queries(const PackedPerformer& a, Range rows, char* workspace) {
  if (is_extension) return extended.performer_queries(a, rows, workspace);
  Arena arena(workspace);
  const PerformerScratch scratch(arena, a);
  const PerformerSums sums = a.sums_at(scratch.sums);
  transpose_projection(a, scratch.projection);
  std::memset(scratch.shifts, 0, performer_section * sizeof(float));
  std::memset(scratch.totals, 0, performer_section * sizeof(float));
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t first = row % a.tokens;
    if (row == rows.begin || first == 0) join_sections(a, row / a.tokens, sums);
    int64_t count = a.tokens - first < rows.end - row ? a.tokens - first : rows.end - row;
    count = count < performer_section ? count : performer_section;
    performer_queries_of(a, row, count, sums, scratch);
    row += count;
  }
}

}  // namespace vitfast::VITFAST_ISA
