// The product of the backward on compute capability 9.0: that of gemm_sm90a.cuh with a weight whose rows are walked,
// and an epilogue that reads the pre-activation as the forward reads a residual.

#pragma once

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/gemm_sm90a.cuh"

namespace vitfast {

template <typename T>
struct GradientSm90 {
  template <typename Values>
  struct Function {
    using Arguments = EpilogueActivation;
    CUTLASS_DEVICE Values
    operator()(const Values& sums, const Values& pre_activation, const Arguments& activation) const {
      return apply_epilogue_gradient<T, Values::kElements>(sums, pre_activation, activation);
    }
  };
};

// A node of CUTLASS's epilogue tree that hands on what it reads and writes a tile's sums of columns to its row of
// `partial_sums` [row tiles, columns]. The sums of warps go through one of two buffers: one is written for the next 32
// columns while the other is read.
struct ColumnSumsSm90 : NodeSm90<cutlass::epilogue::fusion::Sm90VisitorImpl<>, float*> {
  static constexpr int warps = gemm_tile_rows / 16;
  struct SharedStorage {
    float sums[2][warps][column_sum_columns];
  };

  CUTLASS_HOST_DEVICE ColumnSumsSm90() {}
  CUTLASS_HOST_DEVICE ColumnSumsSm90(float* const& partial_sums_, const SharedStorage& storage)
      : partial_sums(partial_sums_), shared(const_cast<SharedStorage*>(&storage)) {}

  // Whether the results of a thread, one after the other, lie where sum_fragment_columns takes them to lie.
  // Layout: from the number of a result to its place, counted from the thread's first one.
  template <typename Layout>
  static constexpr bool has_fragment_order() {
    for (int i = 0; i < column_sum_values; ++i) {
      const auto place = Layout{}(i);
      if (int(cute::get<0>(place)) != i / 2 % 2 * 8 || int(cute::get<1>(place)) != i / 4 * 8 + i % 2) return false;
    }
    return true;
  }

  struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    CUTLASS_DEVICE Callbacks(
        SharedStorage* shared_, float* partial_sums_, int thread_, int rows_left_, int columns_left_)
        : shared(shared_),
          partial_sums(partial_sums_),
          thread(thread_),
          rows_left(rows_left_),
          columns_left(columns_left_) {}

    template <typename Sum, int count>
    CUTLASS_DEVICE cutlass::Array<float, count> visit(
        const cutlass::Array<Sum, count>&, int, int, int epi_n, const cutlass::Array<float, count>& values) {
      static_assert(count == column_sum_values);
      sum_fragment_columns(shared->sums[epi_n % 2][thread / warp_size], values, rows_left, thread % warp_size);
      return values;
    }

    // all threads have met since visit
    CUTLASS_DEVICE void end_loop(int, int epi_n) {
      const int column = epi_n * column_sum_columns + thread;
      if (thread >= column_sum_columns || column >= columns_left) return;
      partial_sums[column] = sum_groups<warps, column_sum_columns>(shared->sums[epi_n % 2][0], thread);
    }

    SharedStorage* shared;
    float* partial_sums;  // of this tile's columns
    int thread, rows_left, columns_left;
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& arguments) {
    static_assert(has_fragment_order<decltype(arguments.tCcD.layout())>());
    const auto [row_tile, column_tile, depth_tile, batch] = arguments.tile_coord_mnkl;
    const int columns = cute::get<1>(arguments.problem_shape_mnkl);
    const int first_column = column_tile * int(cute::size<1>(arguments.tile_shape_mnk));
    // the second block of the last cluster may have no row
    const bool has_rows = cute::get<0>(arguments.residue_cD) > 0;
    return Callbacks(
        shared,
        partial_sums + int64_t(row_tile) * columns + first_column,
        arguments.thread_idx,
        int(cute::get<0>(arguments.residue_tCcD)),
        has_rows ? columns - first_column : 0);
  }

  float* partial_sums = nullptr;
  SharedStorage* shared = nullptr;
};

template <typename T, int columns>
struct FusedGemmGradientSm90a {
  using Element = CutlassElement<T>;
  using Tree = cutlass::epilogue::fusion::Sm90EVT<
      ColumnSumsSm90,
      cutlass::epilogue::fusion::Sm90EVT<
          cutlass::epilogue::fusion::
              Sm90Compute<GradientSm90<T>::template Function, float, float, cutlass::FloatRoundStyle::round_to_nearest>,
          cutlass::epilogue::fusion::Sm90AccFetch,
          cutlass::epilogue::fusion::Sm90SrcFetch<Element>>>;
  using Gemm = GemmSm90a<T, columns, cutlass::layout::RowMajor, Tree>;

  static void launch(const GemmGradientArguments& p, Stream stream) {
    Gemm::launch(
        {cutlass::gemm::GemmUniversalMode::kGemm,
         {p.rows, p.columns, p.depth, 1},
         {Gemm::elements(p.grad),
          Gemm::rows_of(p.depth),
          Gemm::elements(p.weight),
          cute::make_stride(cute::_1{}, int64_t(p.columns), int64_t(0))},
         {{{{}, {}, p.activation}, p.partial_sums},
          Gemm::elements(p.pre_activation),
          Gemm::rows_of(p.columns),
          static_cast<Element*>(p.out),
          Gemm::rows_of(p.columns)}},
        stream);
  }
};

// Hidden widths of ViTs are multiples of 256.
template <typename T>
void launch_gemm_sm90a(const GemmGradientArguments& product, Stream stream) {
  FusedGemmGradientSm90a<T, 256>::launch(product, stream);
}

}  // namespace vitfast
