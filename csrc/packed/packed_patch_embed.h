// Patch embedding: im2col straight into the GEMM's operand, in the order (channel, row, column), with an optional
// LayerNorm. Patches may overlap and extend beyond the image.

#pragma once

#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

// Converts `count` pixels of a line.
template <typename T>
VITFAST_INLINE void copy_pixels(const T* line, int64_t count, float* row) {
  if constexpr (sizeof(T) > 1) {
    for_each_vector<float>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_up_to<float>(row + i, load_up_to<float>(line + i, n), n);
    });
  } else {
    for (int64_t i = 0; i < count; ++i) row[i] = float(line[i]);
  }
}

// Gathers a patch that is entirely within the image, from its upper left corner. `end`: end of all images.
template <typename T>
void gather_whole_patch(const PackedPatchEmbed& a, const T* corner, const T* end, float* row) {
  const T* last_line = corner + ((a.channels - 1) * a.size.height + a.patch.height - 1) * a.size.width;
  // Whole vectors read and write beyond the end of a line; the next line overwrites that. Few patches are at the end.
  const bool in_vectors = sizeof(T) > 1 && end - last_line >= ceil_div(a.patch.width, width<float>) * width<float>;
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    const T* line = corner + channel * a.size.height * a.size.width;
    for (int64_t i = 0; i < a.patch.height; ++i, line += a.size.width, row += a.patch.width) {
      if constexpr (sizeof(T) > 1) {
        if (in_vectors) {
          for (int64_t j = 0; j < a.patch.width; j += width<float>) store(row + j, load(line + j));
          continue;
        }
      }
      copy_pixels(line, a.patch.width, row);
    }
  }
}

// The part of a patch at `position` that is within an image of this size.
constexpr Range within(int64_t position, int64_t patch, int64_t size) {
  return {position < 0 ? -position : 0, size - position < patch ? size - position : patch};
}

// `row`: room for the patch and a vector.
template <typename T>
void gather_patch(const PackedPatchEmbed& a, int64_t image, int64_t patch, float* row) {
  const int64_t across = a.grid().width;
  const int64_t y = patch / across * a.stride.height - a.padding.height;
  const int64_t x = patch % across * a.stride.width - a.padding.width;
  const Range lines = within(y, a.patch.height, a.size.height), columns = within(x, a.patch.width, a.size.width);
  const int64_t plane = a.size.height * a.size.width;
  const T* images = static_cast<const T*>(a.images);
  const T* pixels = images + image * a.channels * plane;
  const bool is_whole =
      lines.end - lines.begin == a.patch.height && columns.end - columns.begin == a.patch.width && a.channels > 0;
  if (is_whole) {
    return gather_whole_patch(a, pixels + y * a.size.width + x, images + a.batch * a.channels * plane, row);
  }
  std::memset(row, 0, size_t(a.gemm.weight.k) * sizeof(float));
  if (columns.end <= columns.begin) return;
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    for (int64_t i = lines.begin; i < lines.end; ++i) {
      const T* line = pixels + channel * plane + (y + i) * a.size.width + x;
      float* target = row + (channel * a.patch.height + i) * a.patch.width;
      copy_pixels(line + columns.begin, columns.end - columns.begin, target + columns.begin);
    }
  }
}

VITFAST_INLINE void gather_patch(const PackedPatchEmbed& a, int64_t image, int64_t patch, float* row) {
  switch (a.pixels) {
    case Pixels::uint8:
      return gather_patch<uint8_t>(a, image, patch, row);
    case Pixels::float32:
      return gather_patch<float>(a, image, patch, row);
    case Pixels::bfloat16:
      return gather_patch<BFloat16>(a, image, patch, row);
  }
}

template <Precision precision>
void embed_patches(const PackedPatchEmbed& a, Range part, char* workspace) {
  const int64_t patches = a.patches(), chunk = chunk_rows(part.end - part.begin, linear_bytes_per_row(a.gemm));
  const int64_t n = a.gemm.weight.n, k = a.gemm.weight.k;
  Arena arena(workspace);
  const LinearScratch s(arena, precision, k, chunk);
  const GemmRegisters<precision> registers;
  PackedLinear of_image = a.gemm;
  for (int64_t row = part.begin; row < part.end;) {
    const int64_t image = row / patches, first = row % patches;
    float* const tokens = static_cast<float*>(a.gemm.out) + image * (a.prefix_rows + patches) * n;
    of_image.out = tokens + a.prefix_rows * n;
    if (first == 0 && a.prefix_rows > 0) std::memcpy(tokens, a.prefix, size_t(a.prefix_rows * n) * sizeof(float));
    int64_t count = patches - first < part.end - row ? patches - first : part.end - row;
    count = count < chunk ? count : chunk;
    for (int64_t r = 0; r < count; ++r) {
      gather_patch(a, image, first + r, s.row);
      if (a.gemm.norm.is_used) normalize_row<precision>(s.row, k, a.gemm.norm, s.row);
      convert_row<precision>(s.row, k, s.operand, r);
    }
    multiply_rows<precision>(of_image, first, count, {0, panel_count(n)}, s);
    row += count;
  }
}

}  // namespace vitfast::VITFAST_ISA
