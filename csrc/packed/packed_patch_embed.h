// Patch embedding: the patches of an image are gathered as rows of a product, pixel by pixel in the order (channel,
// row, column), straight into its operand.

#pragma once

#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

VITFAST_INLINE float pixel(uint8_t value) {
  return float(value);
}
VITFAST_INLINE float pixel(float value) {
  return value;
}
VITFAST_INLINE float pixel(BFloat16 value) {
  return bit_cast<float>(uint32_t(value.bits) << 16);
}

template <typename T>
void gather_patch(const PackedPatchEmbed& a, int64_t image, int64_t patch, float* row) {
  const int64_t patches_a_row = a.width / a.patch_width;
  const int64_t y = patch / patches_a_row * a.patch_height, x = patch % patches_a_row * a.patch_width;
  const T* pixels = static_cast<const T*>(a.images) + image * a.channels * a.height * a.width + y * a.width + x;
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    for (int64_t i = 0; i < a.patch_height; ++i) {
      const T* line = pixels + (channel * a.height + i) * a.width;
      for (int64_t j = 0; j < a.patch_width; ++j) row[j] = pixel(line[j]);
      row += a.patch_width;
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

inline int64_t patch_bytes_per_row(const PackedPatchEmbed& a) {
  return operand_stride(a.weight.precision, a.weight.k) * 4;
}

inline int64_t patch_embed_workspace(const PackedPatchEmbed& a, int64_t rows) {
  Arena arena(nullptr);
  LinearScratch(arena, a.weight.precision, a.weight.k, max_chunk_rows(rows, patch_bytes_per_row(a)));
  return arena.used();
}

// The patches [begin, end) of one image.
template <Precision precision>
void embed_patches(const PackedPatchEmbed& a, int64_t image, int64_t begin, int64_t end, const LinearScratch& s) {
  const int64_t n = a.weight.n;
  for (int64_t r = 0; r < end - begin; ++r) {
    gather_patch(a, image, begin + r, s.row);
    convert_row<precision>(
        s.row, a.weight.k, s.operand.words + r * s.operand.stride, s.operand.scales + r * s.operand.groups);
  }
  const Destination destination{
      Activation::none,
      Accuracy::full,
      nullptr,
      a.positions == nullptr ? nullptr : a.positions + begin * n,
      n,
      Store::float32,
      a.out + (image * (a.prefix_rows + a.patches()) + a.prefix_rows + begin) * n,
      n,
      0,
      s.partial,
      panel_columns,
      true};
  multiply_panels<precision>(
      s.operand, end - begin, a.weight, {0, panel_count(n)}, {0, group_count(a.weight.k)}, destination, s.product);
}

template <Precision precision>
void patch_embed_rows(const PackedPatchEmbed& a, int64_t begin, int64_t end, char* workspace) {
  const int64_t patches = a.patches(), chunk = chunk_rows(end - begin, patch_bytes_per_row(a));
  Arena arena(workspace);
  const LinearScratch scratch(arena, precision, a.weight.k, chunk);
  const ProductRegisters<precision> registers;
  for (int64_t row = begin; row < end;) {
    const int64_t image = row / patches, first = row % patches;
    if (first == 0 && a.prefix_rows > 0) {
      float* target = a.out + image * (a.prefix_rows + patches) * a.weight.n;
      std::memcpy(target, a.prefix, size_t(a.prefix_rows * a.weight.n) * sizeof(float));
    }
    int64_t count = patches - first < end - row ? patches - first : end - row;
    count = count < chunk ? count : chunk;
    embed_patches<precision>(a, image, first, first + count, scratch);
    row += count;
  }
}

}  // namespace vitfast::VITFAST_ISA
