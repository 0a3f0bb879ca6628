// From the arguments of the epilogue's gradient to its grid.

#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/linear/epilogue_gradient_kernel.cuh"

namespace vitfast {

// How many rows a block takes: the number of chunks, and with it the order of the sums, depends on the shape alone. The
// chunks are small enough to keep a large GPU busy, and large enough for their partial sums, of four bytes, to be few
// beside what is read.
constexpr int64_t epilogue_gradient_rows_per_chunk(int64_t rows, int64_t columns) {
  constexpr int64_t blocks = 1024, least_rows = 64;
  const int64_t column_blocks = (columns + epilogue_gradient_columns - 1) / epilogue_gradient_columns;
  const int64_t chunks = blocks / column_blocks > 0 ? blocks / column_blocks : 1;
  const int64_t even_split = (rows + chunks - 1) / chunks;
  return even_split > least_rows ? even_split : least_rows;
}

constexpr int64_t epilogue_gradient_chunks(int64_t rows, int64_t rows_per_chunk) {
  return (rows + rows_per_chunk - 1) / rows_per_chunk;
}

// T: Half or BFloat16.
template <typename T>
void launch_epilogue_gradient(const EpilogueGradient& a, Stream stream) {
  if (a.rows == 0 || a.columns == 0) return;
  const int64_t column_blocks = (a.columns + epilogue_gradient_columns - 1) / epilogue_gradient_columns;
  const int64_t blocks = column_blocks * epilogue_gradient_chunks(a.rows, a.rows_per_chunk);
  launch(
      epilogue_gradient_kernel<T>,
      blocks,
      epilogue_gradient_threads,
      epilogue_gradient_shared_bytes,
      stream,
      a,
      column_blocks);
}

}  // namespace vitfast
