// Products and the mlp on all threads: the parallel regions that the operators are made of.

#pragma once

#include "csrc/packed/packed_tensors.h"
#include "csrc/packed/split.h"

namespace vitfast {

inline void run_linear(const PackedLinear& a, int64_t rows) {
  const int64_t panels = panel_count(a.weight.n);
  if (rows == 0 || panels == 0) return;
  const Grid grid = choose_grid(rows, panels, worthwhile_threads(rows * a.weight.n * a.weight.k));
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.linear_workspace(a, divide_up(rows, grid.row_parts)), grid.parts());
  for_each_part(
      grid.parts(), [&](int64_t part) { kernels.linear(a, grid.part(part, rows, panels), workspace.part(part)); });
}

// The mlp as two products with the hidden units in memory between them: many threads share few rows.
inline void run_mlp_by_panels(const PackedMlp& a, int64_t rows) {
  const bool is_narrow = a.fc1.precision == Precision::bfloat16;
  const Tensor hidden = new_tensor({rows, a.fc1.n}, is_narrow ? ScalarType::BFloat16 : ScalarType::Float);
  const Type type = is_narrow ? Type::bfloat16 : Type::float32;
  run_linear({a.fc1, a.x, a.norm, a.activation, nullptr, nullptr, type, hidden.mutable_data_ptr()}, rows);
  const Rows hidden_rows{type, hidden.const_data_ptr(), a.fc1.n};
  run_linear({a.fc2, hidden_rows, Norm{}, Activation::none, a.scale, a.residual, Type::float32, a.out}, rows);
}

inline bool is_chained(int64_t rows, int64_t threads) {
  return threads == 1 || rows >= min_chained_rows * threads;
}

inline void run_mlp(const PackedMlp& a, int64_t rows) {
  if (rows == 0) return;
  const int64_t threads = worthwhile_threads(rows * a.fc1.n * (a.fc1.k + a.fc2.n));
  if (!is_chained(rows, threads)) return run_mlp_by_panels(a, rows);
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.mlp_workspace(a, divide_up(rows, threads)), threads);
  for_each_part(threads, [&](int64_t part) {
    kernels.mlp(a, part * rows / threads, (part + 1) * rows / threads, workspace.part(part));
  });
}

}  // namespace vitfast
