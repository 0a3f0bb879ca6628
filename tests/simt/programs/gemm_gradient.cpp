// The epilogue of a gradient's product on its own: sums and pre_activation [rows, columns] -> y [rows, columns] and
// partial [row tiles, columns]. A block is a tile of CUTLASS's kernel for compute capability 9.0; its warps are the
// groups of 16 rows, whose threads have what wgmma left them, 32 columns at a time.

#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/gemm_epilogue.cuh"
#include "tests/simt/programs/program.h"

constexpr int width = vitfast::column_sum_columns;
constexpr int warps = vitfast::gemm_tile_rows / 16;

struct Values {
  float value[vitfast::column_sum_values];
  __device__ float& operator[](int i) { return value[i]; }
  __device__ const float& operator[](int i) const { return value[i]; }
};

template <typename T>
__global__ void gradient_kernel(
    const float* sums, const T* pre_activation, T* y, float* partial, int rows, int columns) {
  const int lane = vitfast::lane_in_warp(), warp = vitfast::warp_in_block();
  const int row = int(blockIdx.x) * vitfast::gemm_tile_rows + warp * 16 + lane / 4;
  vitfast::SharedMemory shared;
  float* warp_sums = shared.take<float>(warps * width);
  for (int first = 0; first < columns; first += width) {
    Values products{}, inputs{};
    const auto at = [&](int i) {
      return int64_t(row + i / 2 % 2 * 8) * columns + first + i / 4 * 8 + lane % 4 * 2 + i % 2;
    };
    const auto is_inside = [&](int i) {
      return row + i / 2 % 2 * 8 < rows && first + i / 4 * 8 + lane % 4 * 2 + i % 2 < columns;
    };
    for (int i = 0; i < vitfast::column_sum_values; ++i) {
      // what a product computes behind the last row does not count, whatever it is
      products[i] = is_inside(i) ? sums[at(i)] : vitfast::from_bits(0x7fc00000u);
      if (is_inside(i)) inputs[i] = vitfast::to_float(pre_activation[at(i)]);
    }
    Values gradient;
    for (int i = 0; i < vitfast::column_sum_values; ++i) {
      gradient[i] = vitfast::finish_gemm<T, vitfast::GemmEpilogue::gelu_gradient>(products[i], 1.0f, inputs[i]);
      if (is_inside(i)) y[at(i)] = vitfast::round_to<T>(gradient[i]);
    }
    vitfast::sum_fragment_columns(warp_sums + warp * width, gradient, rows - row, lane);
    vitfast::sync_threads();
    const int column = int(threadIdx.x);
    if (column < width && first + column < columns) {
      partial[int64_t(blockIdx.x) * columns + first + column] = vitfast::sum_groups<warps, width>(warp_sums, column);
    }
    vitfast::sync_threads();
  }
}

template <typename T>
void run(simt_test::Program& program) {
  const int rows = int(program.integer("rows")), columns = int(program.integer("columns"));
  const int64_t tiles = vitfast::count_row_tiles(rows);
  vitfast::launch(
      gradient_kernel<T>,
      tiles,
      warps * vitfast::warp_size,
      vitfast::shared_bytes<float>(warps * width),
      {},
      program.input<const float>("sums"),
      program.input<const T>("pre_activation"),
      program.output<T>("y", int64_t(rows) * columns),
      program.output<float>("partial", tiles * columns),
      rows,
      columns);
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::BFloat16, vitfast::Half>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
