// Performer attention (Choromanski et al., 2021) in float32; vitfast/layers/performer_attention.py has the formula.
//
// Each section of tokens yields sums of its keys' features times its values, relative to the section's maxima. The sums
// of all sections are combined and multiplied with every query. Sections do not depend on the number of threads.

#pragma once

#include "csrc/packed/attention_softmax.h"
#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

// Element (r, i) is data[r * row + i * step].
struct StridedRows {
  const float* data;
  int64_t row, step;
};

template <int rows>
VITFAST_INLINE void multiply_few(const StridedRows& a, const float* b, int64_t depth, int64_t columns, float* out) {
  constexpr int64_t w = width<float>;
  for (int64_t c = 0; c < columns; c += 2 * w) {
    Vector<float> sums[rows][2] = {};
    for (int64_t i = 0; i < depth; ++i) {
      const Vector<float> left = load(b + i * columns + c), right = load(b + i * columns + c + w);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const float factor = a.data[r * a.row + i * a.step];
        sums[r][0] += factor * left;
        sums[r][1] += factor * right;
      }
    }
    for (int r = 0; r < rows; ++r) {
      store(out + r * columns + c, sums[r][0]);
      store(out + r * columns + c + w, sums[r][1]);
    }
  }
}

// out [rows, columns] = a [rows, depth] b [depth, columns], columns a multiple of performer_padding.
inline void multiply_rows(
    const StridedRows& a, int64_t rows, const float* b, int64_t depth, int64_t columns, float* out) {
  constexpr int at_once = VITFAST_VECTOR_BYTES == 64 ? 8 : 6;
  const auto rest = [&](int64_t r) { return StridedRows{a.data + r * a.row, a.row, a.step}; };
  int64_t r = 0;
  for (; r + at_once <= rows; r += at_once) multiply_few<at_once>(rest(r), b, depth, columns, out + r * columns);
  for (; r + 2 <= rows; r += 2) multiply_few<2>(rest(r), b, depth, columns, out + r * columns);
  if (r < rows) multiply_few<1>(rest(r), b, depth, columns, out + r * columns);
}

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

inline int64_t performer_workspace(const PackedPerformer& a) {
  Arena arena(nullptr);
  PerformerScratch(arena, a);
  return arena.used();
}

inline void transpose_projection(const PackedPerformer& a, float* transposed) {
  for (int64_t d = 0; d < a.dim; ++d) {
    for (int64_t m = 0; m < a.padded_features(); ++m) {
      transposed[d * a.padded_features() + m] = m < a.features ? a.projection[m * a.dim + d] : 0.0f;
    }
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
  const int64_t columns = a.padded_features(), stride = 3 * a.dim;
  const float* keys = a.kqv + (image * a.tokens + first) * stride;
  const PerformerSums sums = a.sums_at(a.sums + section * a.sums_size());
  multiply_rows({keys, stride, 1}, count, s.projection, a.dim, columns, s.features);
  for (int64_t t = 0; t < count; ++t) {
    s.shifts[t] = half_square(keys + t * stride, a.dim);
    std::memcpy(s.values + t * a.padded_dim(), keys + t * stride + 2 * a.dim, size_t(a.dim) * sizeof(float));
    for (int64_t d = a.dim; d < a.padded_dim(); ++d) s.values[t * a.padded_dim() + d] = 0;
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
  multiply_rows({s.features, 1, columns}, a.features, s.values, count, a.padded_dim(), sums.products);
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
  const int64_t columns = a.padded_features(), stride = 3 * a.dim;
  const float* queries = a.kqv + begin * stride + a.dim;
  const float log_epsilon = float(a.log_epsilon);
  multiply_rows({queries, stride, 1}, count, s.projection, a.dim, columns, s.features);
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
  multiply_rows({s.features, columns, 1}, count, sums.products, a.features, a.padded_dim(), s.values);
  for (int64_t t = 0; t < count; ++t) {
    const float factor = s.totals[t];
    for_each_vector<float>(a.dim, [&](int64_t d, int64_t size) __attribute__((always_inline)) {
      store_up_to<float>(a.out + (begin + t) * a.dim + d, load(s.values + t * a.padded_dim() + d) * factor, size);
    });
  }
}

inline void performer_keys(const PackedPerformer& a, int64_t begin, int64_t end, char* workspace) {
  Arena arena(workspace);
  const PerformerScratch scratch(arena, a);
  transpose_projection(a, scratch.projection);
  for (int64_t section = begin; section < end; ++section) performer_keys_of(a, section, scratch);
}

inline void performer_queries(const PackedPerformer& a, int64_t begin, int64_t end, char* workspace) {
  Arena arena(workspace);
  const PerformerScratch scratch(arena, a);
  const PerformerSums sums = a.sums_at(scratch.sums);
  transpose_projection(a, scratch.projection);
  std::memset(scratch.shifts, 0, performer_section * sizeof(float));
  std::memset(scratch.totals, 0, performer_section * sizeof(float));
  for (int64_t row = begin; row < end;) {
    const int64_t first = row % a.tokens;
    if (row == begin || first == 0) join_sections(a, row / a.tokens, sums);
    int64_t count = a.tokens - first < end - row ? a.tokens - first : end - row;
    count = count < performer_section ? count : performer_section;
    performer_queries_of(a, row, count, sums, scratch);
    row += count;
  }
}

}  // namespace vitfast::VITFAST_ISA
