// GEMM with a packed weight on a rectangle of its result, and the MLP on a range of rows.

#pragma once

#include "csrc/packed/gemm.h"

namespace vitfast::VITFAST_ISA {

// Suballocates a task's memory; with a null base it only computes the size.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The bytes that a scratch structure takes from an Arena.
template <typename Scratch, typename... Arguments>
int64_t bytes_of(const Arguments&... arguments) {
  Arena arena(nullptr);
  Scratch(arena, arguments...);
  return arena.used();
}

// Chunks are multiples of the microkernel's rows. Processors with AMX have 2 MiB of L2; there, reading the panels again
// costs more than rows that overflow it. Without AVX-512, L2 holds one block's part of the rows only.
constexpr ChunkLimits own_chunk_limits =
    has_tiles ? ChunkLimits{32, 64, 768, 2 << 20} : ChunkLimits{tile_rows, 48, 384, (splits_groups ? 4 : 1) << 19};

// Those of the processor, also for the precisions that it computes by the functions of another instruction set.
inline const ChunkLimits& chunk_limits() {
  return vitfast::packed_kernels().chunk_limits;
}

inline int64_t whole_chunk_steps(int64_t rows) {
  return ceil_div(rows, chunk_limits().step) * chunk_limits().step;
}

inline int64_t max_chunk_rows(int64_t rows, int64_t bytes_per_row) {
  const auto& [step, smallest, largest, bytes] = chunk_limits();
  int64_t chunk = bytes / bytes_per_row / step * step;
  chunk = chunk < smallest ? smallest : chunk > largest ? largest : chunk;
  return chunk < rows ? chunk : rows;
}

// Chunks of nearly the same size.
inline int64_t chunk_rows(int64_t rows, int64_t bytes_per_row) {
  const int64_t chunks = ceil_div(rows, max_chunk_rows(rows, bytes_per_row));
  return chunks <= 1 ? rows : whole_chunk_steps(ceil_div(rows, chunks));
}

inline Operand take_operand(Arena& arena, Precision precision, int64_t rows, int64_t k) {
  const int64_t stride = operand_stride(precision, k), groups = group_count(k);
  uint32_t* words = arena.take<uint32_t>(whole_chunk_steps(rows) * stride);  // AMX tiles read whole steps
  const int64_t scales = precision == Precision::int8 ? rows * groups : 1;
  return {words, stride, arena.take<float>(scales), arena.take<int32_t>(scales), groups};
}

inline GemmScratch take_gemm_scratch(Arena& arena, int64_t chunk) {
  const int64_t rows = splits_groups ? whole_chunk_steps(chunk) : (has_tiles ? 2 : 1) * chunk_limits().step;
  return {arena.take<uint32_t>((block_size + 1) * panel_columns), arena.take<float>(rows * panel_columns)};
}

struct LinearScratch {
  LinearScratch(Arena& arena, Precision precision, int64_t k, int64_t chunk)
      : operand(take_operand(arena, precision, chunk, k)),
        gemm(take_gemm_scratch(arena, chunk)),
        row(arena.take<float>(k + width<float>)),
        partial(arena.take<float>(chunk * panel_columns)) {}
  Operand operand;
  GemmScratch gemm;
  float* row;
  float* partial;
};

inline int64_t linear_bytes_per_row(const PackedLinear& a) {
  return operand_stride(a.weight.precision, a.weight.k) * 4;
}

inline int64_t linear_bytes(const PackedLinear& a, int64_t rows) {
  return bytes_of<LinearScratch>(a.weight.precision, a.weight.k, max_chunk_rows(rows, linear_bytes_per_row(a)));
}

// Multiplies prepared rows: those of a.x and of the result from `row` on.
template <Precision precision>
void multiply_rows(const PackedLinear& a, int64_t row, int64_t rows, Range panels, const LinearScratch& s) {
  const int64_t n = a.weight.n;
  const bool is_narrow = a.out_type == Type::bfloat16;
  const Destination destination{
      a.activation,
      a.scale,
      a.residual == nullptr ? nullptr : a.residual + row * n,
      is_narrow ? Store::bfloat16 : Store::float32,
      static_cast<char*>(a.out) + row * n * (is_narrow ? 2 : 4),
      n,
      0,
      s.partial,
      a.factor == nullptr ? nullptr : a.factor + row * n,
      n};
  const Range groups{0, group_count(a.weight.k)};
  const char* const after = a.weight.group(panels.begin, 0);  // of the next chunk
  multiply_panels<precision>({s.operand, rows, a.weight, panels, groups, destination, s.gemm, after});
}

template <Precision precision>
void linear_part(const PackedLinear& a, Range part, Range panels, char* workspace) {
  const int64_t chunk = chunk_rows(part.end - part.begin, linear_bytes_per_row(a));
  Arena arena(workspace);
  const LinearScratch scratch(arena, precision, a.weight.k, chunk);
  const GemmRegisters<precision> registers;
  for (int64_t row = part.begin; row < part.end; row += chunk) {
    const int64_t rows = part.end - row < chunk ? part.end - row : chunk;
    prepare_operand<precision>(a.x, a.norm, row, rows, a.weight.k, scratch.operand, scratch.row);
    multiply_rows<precision>(a, row, rows, panels, scratch);
  }
}

// --- MLP: both GEMMs for a chunk of rows; hidden activations are computed group by group and stay in the cache ---

struct MlpScratch : LinearScratch {
  MlpScratch(Arena& arena, const PackedMlp& a, int64_t chunk)
      : LinearScratch(arena, a.fc1.precision, a.fc1.k, chunk),
        hidden(take_operand(arena, a.fc1.precision, chunk, group_size(a.fc1.n))),
        hidden_rows(
            a.fc1.precision == Precision::int8 ? arena.take<float>(chunk * hidden_stride(a) + width<float>) : nullptr),
        gate(a.is_gated() ? arena.take<float>(chunk * panel_columns) : nullptr) {}
  static int64_t hidden_stride(const PackedMlp& a) { return ceil_div(group_size(a.fc1.n), 16) * 16; }
  Operand hidden;
  float* hidden_rows;  // int8: before quantization
  float* gate;         // a panel, after the activation
};

inline int64_t mlp_bytes_per_row(const PackedMlp& a) {
  const Precision precision = a.fc1.precision;
  const int64_t words = operand_stride(precision, a.fc1.k) + operand_stride(precision, group_size(a.fc1.n));
  const int64_t staged = precision == Precision::int8 ? group_size(a.fc1.n) : 0;
  return (words + staged + (a.is_gated() ? panel_columns : 0) + a.fc2.n) * 4;
}

inline int64_t mlp_bytes(const PackedMlp& a, int64_t rows) {
  return bytes_of<MlpScratch>(a, max_chunk_rows(rows, mlp_bytes_per_row(a)));
}

// How hidden activations are stored for the second GEMM; int8 stores float32, quantized afterwards.
constexpr Store hidden_store(Precision precision) {
  return precision == Precision::bfloat16  ? (has_bfloat16_dot ? Store::bfloat16 : Store::float32_as_bfloat16)
         : precision == Precision::float16 ? Store::float32_as_float16
                                           : Store::float32;
}

template <Precision precision>
void hidden_group(const PackedMlp& a, int64_t group, int64_t rows, const MlpScratch& scratch) {
  constexpr bool is_int8 = precision == Precision::int8;
  constexpr bool is_pairs = hidden_store(precision) == Store::bfloat16;
  const int64_t first = group * group_size(a.fc1.n);
  const int64_t size = a.fc1.n - first < group_size(a.fc1.n) ? a.fc1.n - first : group_size(a.fc1.n);
  const int64_t stride = is_int8 ? MlpScratch::hidden_stride(a) : scratch.hidden.stride * (is_pairs ? 2 : 1);
  const char* const after = a.fc2.group(0, group);
  void* out = is_int8 ? static_cast<void*>(scratch.hidden_rows) : scratch.hidden.words;
  const Range groups{0, group_count(a.fc1.k)}, panels{first / panel_columns, panel_count(first + size)};
  Destination destination{a.activation, nullptr, nullptr, hidden_store(precision), out, stride, first, scratch.partial};
  if (a.is_gated()) {
    destination.activation = Activation::none;
    destination.factor = scratch.gate;
    destination.factor_stride = panel_columns;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t column = panel * panel_columns;
      const Destination gate{
          a.activation, nullptr, nullptr, Store::float32, scratch.gate, panel_columns, column, scratch.partial};
      const Range one{panel, panel + 1};
      multiply_panels<precision>(
          {scratch.operand, rows, a.gate, one, groups, gate, scratch.gemm, a.fc1.group(panel, 0)});
      destination.out = static_cast<char*>(out) + (column - first) * (is_pairs ? 2 : 4);
      destination.first_column = column;
      const char* const next = one.end < panels.end ? a.gate.group(one.end, 0) : after;
      multiply_panels<precision>({scratch.operand, rows, a.fc1, one, groups, destination, scratch.gemm, next});
    }
  } else {
    multiply_panels<precision>({scratch.operand, rows, a.fc1, panels, groups, destination, scratch.gemm, after});
  }
  for (int64_t r = 0; r < rows; ++r) {
    if constexpr (is_int8) {
      quantize_group(scratch.hidden_rows + r * stride, size, scratch.hidden.group(r, 0, 0));
    } else if (is_pairs) {
      pad_bfloat16(static_cast<BFloat16*>(out) + r * stride, size);
    }
  }
}

template <Precision precision>
void mlp_rows(const PackedMlp& a, Range part, char* workspace) {
  const int64_t chunk = chunk_rows(part.end - part.begin, mlp_bytes_per_row(a)), n = a.fc2.n;
  Arena arena(workspace);
  const MlpScratch scratch(arena, a, chunk);
  const GemmRegisters<precision> registers;
  for (int64_t row = part.begin; row < part.end; row += chunk) {
    const int64_t rows = part.end - row < chunk ? part.end - row : chunk;
    prepare_operand<precision>(a.x, a.norm, row, rows, a.fc1.k, scratch.operand, scratch.row);
    float* out = a.out + row * n;
    const float* residual = a.residual == nullptr ? nullptr : a.residual + row * n;
    const Destination destination{Activation::none, a.scale, residual, Store::float32, out, n, 0, nullptr};
    const Range panels{0, panel_count(n)};
    const int64_t groups = group_count(a.fc1.n), first_panels = group_size(a.fc1.n) / panel_columns;
    const PackedWeight& first = a.is_gated() ? a.gate : a.fc1;
    for (int64_t group = 0; group < groups; ++group) {
      hidden_group<precision>(a, group, rows, scratch);
      const char* const after = first.group((group + 1) % groups * first_panels, 0);
      multiply_panels<precision>(
          {scratch.hidden, rows, a.fc2, panels, {group, group + 1}, destination, scratch.gemm, after});
    }
  }
}

}  // namespace vitfast::VITFAST_ISA
