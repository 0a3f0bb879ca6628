// GEMM loops around the microkernel: a chunk of rows times panels of a packed weight.
//
// A chunk's operand stays in L2 together with one block of one panel; the block is read from memory once per chunk and
// used by every tile of it. With AVX-512 a block is a whole group, and the tiles prefetch the next one.

#pragma once

#include <type_traits>

#include "csrc/packed/amx.h"
#include "csrc/packed/epilogue.h"
#include "csrc/packed/gemm_winograd.h"

namespace vitfast::VITFAST_ISA {

template <Precision precision>
struct Format {  // float32, float16, and bfloat16 without an instruction for it
  using Dot = FloatDot;
  static constexpr bool is_widened = precision != Precision::float32;
};

#if defined(__AMX_BF16__)
template <>
struct Format<Precision::bfloat16> {
  using Dot = BFloat16TileDot;
  static constexpr bool is_widened = false;
};
#elif defined(__AVX512BF16__)
template <>
struct Format<Precision::bfloat16> {
  using Dot = BFloat16Dot;
  static constexpr bool is_widened = false;
};
#endif

template <>
struct Format<Precision::int8> {
#if defined(__AMX_INT8__)
  using Dot = Int8TileDot;
  static constexpr bool is_widened = false;
#elif defined(__AVX512VNNI__)
  using Dot = Int8Dot;
  static constexpr bool is_widened = false;
#else
  using Dot = Int16Dot;
  static constexpr bool is_widened = true;
#endif
};

// Whether the GEMMs of a precision use Winograd's inner product.
template <Precision precision>
constexpr bool is_sliced = has_winograd && precision == Precision::int8;

// float32 from half and bfloat16, int16 from int8; amortized over a chunk of rows. `starts`, [64]: with slices, the
// initial values of the sums of each column.
template <Precision precision>
void widen_panel(const char* group, int64_t size, uint32_t* words, int32_t* starts) {
  constexpr int64_t w = width<float>;
  const int64_t rows = ceil_div(size, k_per_word(precision));
  if constexpr (is_sliced<precision>) std::memset(starts, 0, panel_columns * sizeof(int32_t));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < panel_columns; c += w) {
      if constexpr (precision == Precision::float16) {
        store(
            reinterpret_cast<float*>(words) + row * panel_columns + c,
            load(reinterpret_cast<const Half*>(group) + row * panel_columns + c));
      } else {
        const Integers<float> word = load_integers(group + (row * panel_columns + c) * 4);
        Integers<float> low, high;
        if constexpr (precision == Precision::bfloat16) {
          low = word << 16;
          high = word & int32_t(0xffff0000);
        } else {
          low = ((word << 24) >> 24 & 0xffff) | (((word << 16) >> 24) << 16);
          high = ((word << 8) >> 24 & 0xffff) | ((word >> 24) << 16);
        }
#if VITFAST_VECTOR_BYTES == 32
        if constexpr (is_sliced<precision>) {
          uint32_t* const place = words + (c / slice_columns * rows + row) * 2 * slice_columns + c % slice_columns;
          std::memcpy(place, &low, sizeof(low));
          std::memcpy(place + slice_columns, &high, sizeof(high));
          const auto products = (Integers<float>)_mm256_madd_epi16((__m256i)low, (__m256i)high);
          const Integers<float> sums = load_integers(starts + c) - products;
          std::memcpy(starts + c, &sums, sizeof(sums));
          continue;
        }
#endif
        const int64_t target = k_per_word(precision) * row;
        constexpr int64_t step = precision == Precision::int8 ? 2 : 1;
        std::memcpy(words + target / step * panel_columns + c, &low, sizeof(low));
        // an odd number of inputs leaves half a word of padding
        if (precision == Precision::int8 || target + 1 < size) {
          std::memcpy(words + (target / step + 1) * panel_columns + c, &high, sizeof(high));
        }
      }
    }
  }
}

// Whether AMX tiles multiply the operands of a precision.
template <Precision precision>
constexpr bool uses_tiles = has_tiles && (precision == Precision::bfloat16 || precision == Precision::int8);

// Reserves the registers that a precision's GEMMs need, for the lifetime of the object.
struct NoRegisters {
  NoRegisters() {}
};
#if defined(__AMX_TILE__)
template <Precision precision>
using GemmRegisters = std::conditional_t<uses_tiles<precision>, TileRegisters, NoRegisters>;
#else
template <Precision precision>
using GemmRegisters = NoRegisters;
#endif

// Inputs of a group processed for all rows of a chunk before the next ones. Processors without AVX-512 have small L2
// caches: 512 KiB on Zen 3, 256 KiB on Skylake. A multiple of `max_run`, so that results do not depend on it.
constexpr int64_t block_size = is_wide ? max_group : max_run;
constexpr bool splits_groups = block_size < max_group;

// Two inputs of a slice are one word.
template <Precision precision>
constexpr int64_t block_inputs = is_sliced<precision> ? 2 * block_size : block_size;

// Memory of a GEMM besides its operands.
struct GemmScratch {
  uint32_t* widened;  // [block_size + 1, 64]; the last row holds `starts` of `widen_panel`
  float* sums;        // [rows, 64]: two tiles with AMX; all rows of a chunk if groups are split; else one tile
};

// Inputs [begin, begin + size) of a group.
template <Precision precision>
VITFAST_INLINE Panel open_panel(const char* group, int64_t begin, int64_t size, const GemmScratch& scratch) {
  constexpr bool has_header = precision == Precision::int8;
  const char* const first = group + (has_header ? panel_columns * 4 : 0) +
                            begin / k_per_word(precision) * panel_columns * word_bytes(precision);
  const int64_t rows = operand_words(precision, size);
  if constexpr (Format<precision>::is_widened) {
    auto* const starts = reinterpret_cast<int32_t*>(scratch.widened + block_size * panel_columns);
    widen_panel<precision>(first, size, scratch.widened, starts);
    return {scratch.widened, rows, is_sliced<precision> ? starts : nullptr, nullptr};
  } else {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(first);
    if constexpr (uses_tiles<precision>) copy_tail(words, rows, scratch.widened);
    return {words, rows, has_header && begin == 0 ? reinterpret_cast<const int32_t*>(group) : nullptr, scratch.widened};
  }
}

// Rows of an operand times panels of a weight, groups of its inputs only; the operand holds these groups only.
struct PackedGemm {
  const Operand& a;
  int64_t rows;
  const PackedWeight& weight;
  Range panels, groups;
  const Destination& out;
  const GemmScratch& scratch;
  const char* after;  // the panel that is multiplied afterwards, to be prefetched
};

// The epilogue's arguments for the sums of rows [row, end) with one group of a panel.
template <Precision precision>
VITFAST_INLINE Tile
describe_tile(const PackedGemm& gemm, int64_t panel, int64_t group, const float* sums, int64_t row, int64_t end) {
  const auto& [a, all_rows, weight, panels, groups, d, scratch, after] = gemm;
  constexpr int64_t element[] = {4, 2, 4, 4};  // of each Store
  const int64_t column = panel * panel_columns;
  char* const out = static_cast<char*>(d.out) + (row * d.out_stride + column - d.first_column) * element[int(d.store)];
  return {
      sums,
      end - row,
      weight.n - column < panel_columns ? weight.n - column : panel_columns,
      a.scales + row * a.groups + (group - groups.begin),
      a.groups,
      precision == Precision::int8 ? weight.scales() + column : nullptr,
      weight.bias == nullptr ? nullptr : weight.bias + column,
      d.scale == nullptr ? nullptr : d.scale + column,
      d.residual == nullptr ? nullptr : d.residual + row * weight.n + column,
      weight.n,
      d.factor == nullptr ? nullptr : d.factor + row * d.factor_stride + column - d.first_column,
      d.factor_stride,
      d.partial == nullptr ? reinterpret_cast<float*>(out) : d.partial + row * panel_columns,
      d.partial == nullptr ? d.out_stride : panel_columns,
      group == 0,
      group + 1 == group_count(weight.k),
      d.store,
      out,
      d.out_stride};
}

template <Precision precision>
void multiply_panel(const PackedGemm& gemm, int64_t panel, InterleavedWork& other) {
  const auto& [a, rows, weight, panels, groups, d, scratch, after] = gemm;
  using Dot = typename Format<precision>::Dot;
  const int64_t size = group_size(weight.k);
  constexpr int64_t at_once = rows_at_once<Dot>;
  const int64_t tiles = ceil_div(rows, at_once);
  constexpr Accuracy gelu_accuracy = precision == Precision::int8       ? Accuracy::int8
                                     : precision == Precision::bfloat16 ? Accuracy::narrow
                                                                        : Accuracy::full;
  const FinishRows finish = finish_function<Dot::is_integer, gelu_accuracy>(d.activation, d.store);
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const int64_t depth = weight.k - g * size < size ? weight.k - g * size : size;
    const char* const group = weight.group(panel, g);
    const char* const next = g + 1 < groups.end       ? weight.group(panel, g + 1)
                             : panel + 1 < panels.end ? weight.group(panel + 1, groups.begin)
                                                      : after;
    other.next_line = next;
    constexpr int64_t step = block_inputs<precision>;
    Tile all = describe_tile<precision>(gemm, panel, g, scratch.sums, 0, rows);
    for (int64_t block = 0; block == 0 || block < depth; block += step) {
      const int64_t rest = depth - block;
      const Panel b = open_panel<precision>(group, block, rest < step ? rest : step, scratch);
      const uint32_t* words = a.words + operand_words(precision, (g - groups.begin) * size + block);
#if VITFAST_VECTOR_BYTES == 32
      if constexpr (is_sliced<precision>) {
        const int32_t* const starts = block > 0 ? nullptr : a.starts + (g - groups.begin);
        auto* const sums = reinterpret_cast<uint32_t*>(scratch.sums);
        multiply_slices(words, a.stride, rows, b, starts, a.groups, sums);
        if (rest <= step) finish(all, 0, rows);
        continue;
      }
#endif
      if constexpr (uses_tiles<precision>) {
        const int64_t steps = tile_steps(b.rows);
        other.rows_a_step = ceil_div(at_once, steps);
        other.lines_a_step = ceil_div(group_bytes(precision, depth), 64 * tiles * steps);
      }
      // every tile prefetches its share: faster requests would delay the loads from L2
      const int64_t steps = tiles * b.rows, share = steps == 0 ? 0 : ceil_div(group_bytes(precision, depth), steps);
      for (int64_t t = 0; t < tiles; ++t) {
        // tiles of nearly equal height; with AMX all but the last are full
        const int64_t row = uses_tiles<precision> ? t * at_once : t * rows / tiles;
        const int64_t next_row = uses_tiles<precision> ? row + at_once : (t + 1) * rows / tiles;
        const int64_t end = next_row < rows ? next_row : rows;
        float* const sums = scratch.sums + (splits_groups ? row * panel_columns : other.buffer * tile_size<Dot>);
        if constexpr (uses_tiles<precision>) {
          multiply_by_tiles<Dot>(end - row, words + row * a.stride, a.stride, b, sums, other);
          other.finish_until(at_once);
        } else {
          const Ahead ahead{next + t * b.rows * share, share};
          multiply_tile<Dot>(end - row, words + row * a.stride, a.stride, b, block > 0, ahead, sums);
        }
        if (rest > step) continue;
        if constexpr (uses_tiles<precision>) {
          other.finish = finish;
          other.tile = describe_tile<precision>(gemm, panel, g, sums, row, end);
          other.next_row = 0;
          other.buffer = 1 - other.buffer;
        } else {
          all.sums = sums - row * panel_columns;  // where row 0 would be; `finish` reads from `row` on
          finish(all, row, end);
        }
      }
    }
  }
}

template <Precision precision>
void multiply_panels(const PackedGemm& gemm) {
  InterleavedWork other{};
  for (int64_t panel = gemm.panels.begin; panel < gemm.panels.end; ++panel) {
    multiply_panel<precision>(gemm, panel, other);
  }
  other.finish_until(gemm.rows);
}

}  // namespace vitfast::VITFAST_ISA
