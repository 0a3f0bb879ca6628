// The product of the backward from compute capability 8.0 on: that of gemm_sm80.cuh with a weight whose rows are
// walked, and an epilogue that reads the pre-activation.

#pragma once

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/gemm_sm80.cuh"

namespace vitfast {

struct EpilogueGradientParams {
  EpilogueActivation activation;
  float* partial_sums;
};

// A node of CUTLASS's epilogue tree: apply_epilogue_gradient, and a tile's sums of columns, which go to its row of
// `partial_sums` [row tiles, columns]. A thread sees eight columns of every few rows; the threads that see the same
// columns add up in shared memory.
template <typename T>
struct GradientSm80 : NodeSm80<EpilogueGradientParams> {
  using Threads = typename TileSm80<T>::Threads;
  static constexpr int width = gemm_alignment, columns = TileSm80<T>::Tile::kN;
  static constexpr int groups = Threads::kThreads / (columns / width);
  static_assert(Threads::Iterations::kColumn == 1 && Threads::Detail::kAccessWidth == columns / width);
  static_assert(Threads::kThreads == columns);  // a thread finishes a column

  struct SharedStorage {
    alignas(16) float sums[groups][columns];
  };

  CUTLASS_HOST_DEVICE GradientSm80() {}
  CUTLASS_HOST_DEVICE GradientSm80(const Params& params_, const SharedStorage& storage)
      : params(&params_), shared(const_cast<SharedStorage*>(&storage)) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE
    Callbacks(
        const Params* params_, SharedStorage* shared_, cutlass::gemm::GemmCoord tile, int thread_, int rows, int n)
        : params(params_),
          shared(shared_),
          thread(thread_),
          rows_left(rows - tile.m() * gemm_tile_rows),
          first_column(tile.n() * columns),
          all_columns(n),
          target(params_->partial_sums + int64_t(tile.m()) * n + first_column) {
      sums.clear();
    }

    template <typename Sum, typename Element>
    CUTLASS_DEVICE cutlass::Array<float, width> visit(
        int step,
        int row,
        int,
        int,
        const cutlass::Array<Sum, width>&,
        const cutlass::Array<Sum, width>& products,
        const cutlass::Array<Element, width>& pre_activation) {
      const auto inputs = cutlass::NumericArrayConverter<float, Element, width>{}(pre_activation);
      const auto gradient = apply_epilogue_gradient<T, width>(products, inputs, params->activation);
      if (row_in_tile(step, row) < rows_left) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; ++i) sums[i] += gradient[i];
      }
      return gradient;
    }

    CUTLASS_DEVICE void end_epilogue() {
      constexpr int threads_in_row = columns / width;
      float* own = shared->sums[thread / threads_in_row] + thread % threads_in_row * width;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < width; ++i) own[i] = sums[i];
      __syncthreads();
      if (first_column + thread < all_columns) target[thread] = sum_groups<groups, columns>(shared->sums[0], thread);
    }

    CUTLASS_DEVICE int row_in_tile(int step, int row) const {
      const auto tile = cute::make_identity_tensor(cute::make_shape(gemm_tile_rows, columns, 1));
      const auto own = Threads::partition(tile, thread, cutlass::gemm::GemmCoord(0, 0, 0));
      const auto visits = cute::group_modes<2, 5>(own(cute::_0{}, cute::_, cute::_, cute::_, cute::_, cute::_));
      return cute::get<0>(visits(0, row, step));
    }

    const Params* params;
    SharedStorage* shared;
    int thread, rows_left, first_column, all_columns;
    float* target;  // this tile's row of partial sums, from its first column on
    cutlass::Array<float, width> sums;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape problem) {
    return Callbacks(params, shared, tile, thread, int(cute::get<0>(problem)), int(cute::get<1>(problem)));
  }

  const Params* params;
  SharedStorage* shared;
};

template <typename T>
struct FusedGemmGradientSm80 {
  using Leaves = TileSm80<T>;
  using Element = typename Leaves::Element;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      typename Leaves::Store,
      cutlass::epilogue::threadblock::
          Sm80EVT<GradientSm80<T>, cutlass::epilogue::threadblock::VisitorAccFetch, typename Leaves::Load>>;

  static void launch(const GemmGradientArguments& p, Stream stream) {
    const typename Tree::Arguments tree{
        {{},
         {Leaves::elements(p.pre_activation), Element(0), Leaves::rows_of(p.columns)},
         {p.activation, p.partial_sums}},
        {Leaves::elements(p.out), Leaves::rows_of(p.columns)}};
    using Gemm = GemmSm80<T, cutlass::layout::RowMajor, Tree>;
    Gemm::launch({p.rows, p.columns, p.depth}, tree, p.grad, p.weight, p.columns, stream);
  }
};

template <typename T>
void launch_gemm_sm80(const GemmGradientArguments& product, Stream stream) {
  FusedGemmGradientSm80<T>::launch(product, stream);
}

}  // namespace vitfast
